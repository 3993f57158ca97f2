"""A path that is missing, damaged or of another kind: exit code 2 and words, at every command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.ledger import filled
from support.run_folder import write_run

from fedllm import cli

RUN = """
name = "made-up"
task = "classification"
model.path = "{model}"
data.train = "records.jsonl"
data.labels = ["a", "b"]
rounds.count = 1
"""
POLICY = '[data]\ntrain = "records.jsonl"\n[model]\npath = "nowhere"\n'
PRETRAIN = 'name = "base"\n[data]\ntrain = ["{text}"]\n'
TEXT = "name,epsilon\nNorthgate,3\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with one good and several bad files of each kind."""
    monkeypatch.chdir(tmp_path)
    filled(Path("good.sqlite"))
    write_run(Path("run"))
    Path("text.csv").write_text(TEXT)
    Path("binary").write_bytes(bytes(range(256)) * 20)
    Path("empty").touch()
    Path("folder").mkdir()
    Path("run.toml").write_text(RUN.format(model="nowhere"))
    Path("no_model.toml").write_text(RUN.format(model="folder"))
    Path("site.toml").write_text(POLICY)
    Path("pretrain.toml").write_text(PRETRAIN.format(text="nowhere.txt"))
    records = [json.dumps({"text": "made up", "label": label}) for label in "ab" * 20]
    Path("records.jsonl").write_text("\n".join(records))
    for name in ("summary.json", "metrics.jsonl", "run.toml"):
        damaged = write_run(Path(f"damaged-{name}"))
        (damaged / name).write_bytes(b"\xff{")
        (write_run(Path(f"without-{name}")) / name).unlink()
    return tmp_path


def call(capsys, monkeypatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["fedllm", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
        raise SystemExit(0)
    said = capsys.readouterr()
    return stopped.value.code, said.out + said.err


# What follows a command, and the file that its message must name.
BAD_KITS = ("nowhere", "text.csv", "folder")
WALK = [
    *(
        (command, path)
        for path in ("nowhere", "folder", "binary", "text.csv")
        for command in (
            "ledger show {}",
            "ledger verify {}",
            "ledger export {} --out x.jsonl",
        )
    ),
    ("ledger verify good.sqlite --heads {}", "nowhere"),
    ("ledger verify good.sqlite --heads {}", "folder"),
    ("ledger verify good.sqlite --heads {}", "binary"),
    ("ledger verify good.sqlite --heads {}", "text.csv"),
    ("ledger show good.sqlite --policy {}", "nowhere"),
    ("ledger show good.sqlite --policy {}", "folder"),
    ("ledger show good.sqlite --policy {}", "binary"),
    ("ledger show good.sqlite --policy {}", "run.toml"),
    ("ledger export good.sqlite --out {}", "folder"),
    ("ledger export good.sqlite --out {}", "text.csv/x"),
    ("audit epsilon {}", "nowhere"),
    ("audit epsilon {}", "folder"),
    ("audit epsilon {}", "text.csv"),
    ("audit epsilon {}", "binary"),
    ("audit epsilon good.sqlite --heads {}", "nowhere"),
    *(
        ("audit report {}", f"{state}-{name}")
        for state in ("damaged", "without")
        for name in ("run.toml", "summary.json", "metrics.jsonl")
    ),
    ("audit report {}", "nowhere"),
    ("audit report {}", "text.csv"),
    ("audit report run --beside {}", "nowhere"),
    ("audit canaries {}", "nowhere"),
    ("audit canaries {}", "binary"),
    ("audit membership {}", "nowhere"),
    ("audit membership {}", "run"),
    ("audit extraction {}", "nowhere"),
    ("simulate {}", "nowhere"),
    ("simulate {}", "folder"),
    ("simulate {}", "binary"),
    ("simulate run.toml --policy {}", "nowhere"),
    ("simulate run.toml --out {}", "text.csv"),
    ("simulate run.toml --out {}", "text.csv/x"),
    ("pretrain {}", "nowhere"),
    ("pretrain {}", "binary"),
    ("provision {} --out new", "nowhere"),
    ("provision {} --out new", "folder"),
    ("provision sign {} --dir folder", "nowhere"),
    *((f"provision {word} --dir {{}}", "nowhere") for word in ("show", "renew", "passphrase")),
    ("provision revoke north --dir {}", "nowhere"),
    *(
        (f"{command} --kit {{}}", kit)
        for kit in BAD_KITS
        for command in (
            "server start",
            "server status",
            "server update-roster text.csv",
            "authority start",
            "authority log",
            "authority update-roster text.csv",
            "client start --policy site.toml",
            "client update-roster text.csv",
            "run run.toml",
            "run run.toml --cancel",
            "run run.toml --follow",
            "ledger carry-over good.sqlite",
        )
    ),
    *((f"{role} accept {{}} --kit folder", "nowhere") for role in ("client", "server")),
    *((f"{role} enroll --out {{}}", "text.csv/x") for role in ("server", "authority")),
    ("client enroll --name north --out {}", "text.csv/x"),
    ("client check --policy site.toml --kit {}", "nowhere"),
    ("privacy plan --plot {}", "nowhere/plan.png"),
    ("privacy plan --plot {}", "plan.docx"),
    ("demo --quick --out {}", "text.csv"),
    ("demo --quick --out {}", "text.csv/x"),
]


@pytest.mark.parametrize(("command", "path"), WALK, ids=lambda word: word)
def test_a_wrong_path_is_the_users_mistake(place, capsys, monkeypatch, command, path):
    before = {name: name.read_bytes() for name in place.rglob("*") if name.is_file()}
    code, said = call(capsys, monkeypatch, *command.format(path).split())
    assert code == 2, said
    assert "Traceback" not in said
    assert path.split("/")[0] in said.replace("\n", "").replace(" ", "")
    assert before.items() <= {n: n.read_bytes() for n in place.rglob("*") if n.is_file()}.items()


def test_a_missing_model_or_text_is_the_users_mistake(place, capsys, monkeypatch):
    for command in ("simulate run.toml", "simulate no_model.toml", "pretrain pretrain.toml"):
        code, said = call(capsys, monkeypatch, *command.split())
        assert code == 2, said
        assert "nowhere" in said or "folder" in said


def test_a_damaged_ledger_is_tampering(place, capsys, monkeypatch):
    content = bytearray(Path("good.sqlite").read_bytes())
    damage = {"start": slice(0, 16), "middle": slice(4096, 8192), "most": slice(4096, None)}
    for name, part in damage.items():
        changed = bytearray(content)
        changed[part] = bytes(len(changed[part]))
        Path(name).write_bytes(changed)
    Path("empty.sqlite").touch()
    for name in (*damage, "empty.sqlite"):
        code, said = call(capsys, monkeypatch, "ledger", "verify", name)
        assert code == 4, (name, said)


def test_words_that_no_code_foresaw_are_no_traceback(place, capsys, monkeypatch):
    for error, code in (
        (IsADirectoryError(21, "Is a directory", "x"), 2),
        (OSError(28, "full"), 1),
    ):

        def fail(error=error, **_):
            raise error

        monkeypatch.setattr(cli, "app", fail)
        assert call(capsys, monkeypatch, "demo")[0] == code
