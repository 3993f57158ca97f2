"""What a command can refuse, it refuses before torch is imported, and without a trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.federation import records, small_config, write_jsonl
from support.kits import make_federation

from fedllm.config import to_toml

# One process for all: it prints each command's exit code and words, and whether torch was there.
PROGRAM = """
import contextlib, io, json, sys
from fedllm.cli import main

told = []
for arguments in json.loads(sys.stdin.read()):
    words = io.StringIO()
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
        sys.argv = ["fedllm", *arguments]
        try:
            code = main()
        except SystemExit as end:
            code = end.code
    told.append([code, words.getvalue(), "torch" in sys.modules])
print(json.dumps(told))
"""


@pytest.fixture
def place(tmp_path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", records(12))
    (tmp_path / "corpus.jsonl").write_text('{"text": "some words"}\n')
    rows = [json.dumps({"text": "card", "label": "one", "clinic": f"c{i}"}) for i in range(16385)]
    (tmp_path / "many.jsonl").write_text("\n".join(rows))
    config = small_config(Path("model"), data={"train": "train.jsonl", "labels": None, "sites": 2})
    (tmp_path / "run.toml").write_text(to_toml(config))
    (tmp_path / "pretrain.toml").write_text('name = "base"\n[data]\ntrain = "corpus.jsonl"\n')
    make_federation(tmp_path / "federation")
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.toml").write_text('name = "base"\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    return tmp_path


def _of_models() -> list[tuple[list[str], str]]:
    """What commands refuse that ask a model or hand it over."""
    export, serve = ["export", "--format", "peft"], ["serve", "model"]
    return [
        (["predict", "nothing", "--text", "a"], "there is no folder nothing"),
        (["predict", "full", "--text", "a"], "holds no adapter"),
        (["predict", "begun", "--text", "a"], "is not finished"),
        (["predict", "model", "--text", "a", "--out", "full"], "full is a folder"),
        (["generate", "nothing", "--prompt", "a"], "there is no folder nothing"),
        (["chat", "nothing"], "there is no folder nothing"),
        ([*export, "nothing", "--out", "newest"], "there is no folder nothing"),
        ([*export, "begun", "--out", "full"], "full is there already"),
        (["compress", "quantize", "nothing", "--out", "newest"], "there is no folder nothing"),
        (["compress", "quantize", "begun", "--out", "full"], "full is there already"),
        (["compress", "pack", "model", "--out", "full"], "full is there already"),
        (["serve", "nothing"], "there is no folder nothing"),
        (["serve", "model", "model"], "two models are called model"),
        ([*serve, "--keys", "nothing.toml"], "nothing.toml"),
        ([*serve, "--host", "0.0.0.0"], "without keys"),
        ([*serve, "--host", "203.0.113.1", "--keys", "nothing.toml"], "nothing.toml"),
        ([*serve, "--guard-patterns", "nothing.toml"], "nothing.toml"),
        ([*serve, "--tls-certificate", "file", "--tls-key", "file"], "cannot be read"),
        ([*serve, "--kit", "nothing"], "nothing"),
    ]


def test_all_that_can_be_is_refused_before_torch(place):
    simulate, pretrain = ["simulate", "run.toml"], ["pretrain", "pretrain.toml"]
    run = ["run", "run.toml", "--kit", "federation/kits/coordinator"]
    many = ["--set", "data.train=many.jsonl", "--set", "data.site=clinic"]
    asked = [
        ([*simulate, "--out", "file"], "it is a file"),
        ([*simulate, "--out", "file/below"], "could not write into the folder"),
        ([*simulate, "--out", "/proc/x"], "could not write into the folder"),
        ([*simulate, "--out", "full"], "is not empty"),
        ([*simulate, "--out", "new", "--resume"], "no run to resume"),
        ([*simulate, "--out", "new", "--set", "data.train=none.jsonl"], "none.jsonl"),
        ([*simulate, "--out", "new", "--set", "data.text=colour"], "colour"),
        ([*simulate, "--out", "new", "--set", "data.test=none.jsonl"], "none.jsonl"),
        (
            [*simulate, "--out", "new", *many],
            "16385 sites take part, and one sum holds at most 16384",
        ),
        ([*simulate, "--out", "new", "--ledgers", "file"], "could not write into the folder"),
        ([*run, "--resume"], "no run 'small' to resume"),
        ([*run, "--set", "data.test=none.jsonl"], "none.jsonl"),
        ([*pretrain, "--out", "file"], "could not write into the folder"),
        ([*pretrain, "--out", "file/below"], "could not write into the folder"),
        ([*pretrain, "--out", "begun"], "holds a run already"),
        ([*pretrain, "--out", "new", "--set", "data.train=none.jsonl"], "none.jsonl"),
        ([*pretrain, "--out", "new", "--set", "data.text=colour"], "colour"),
        (["demo", "--out", "file"], "could not write into the folder"),
        *_of_models(),
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([arguments for arguments, _ in asked]),
        capture_output=True,
        text=True,
        check=True,
        cwd=place,
    )
    for (arguments, says), (code, words, torch) in zip(asked, json.loads(done.stdout), strict=True):
        assert code == 2, (arguments, words)
        assert says in words, (arguments, words)
        assert not torch, arguments
    assert not (place / "new" / "run.toml").exists()
