"""The quickstarts by user: short, and each of their commands is run, in order, as it stands."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.kits import make_federation
from support.ledger import filled
from support.ports import free_port
from support.tls import tls_server
from typer.testing import CliRunner

from fedllm.cli import app

ROOT = Path(__file__).resolve().parent.parent
QUICKSTARTS = sorted((ROOT / "docs/quickstarts").glob("*.md"))
USERS = {"operations", "coordinator", "protection-officer", "auditor", "researcher"}
each = pytest.mark.parametrize("path", QUICKSTARTS, ids=lambda path: path.stem)
# By these the environment was made in which this runs.
INSTALLED = ("make install", ". .venv/bin/activate")
# What makes a command work does not hang on how many rounds or canaries there are, or on a port.
FEWER = {
    "simulate": ["--set", "rounds.count=2"],
    "init": ["--yes"],
    "audit canaries": ["--canaries", "40"],
    "dashboard runs": ["--port", "0"],
}


def blocks(path: Path, kind: str = "") -> list[str]:
    """Return a page's blocks of code of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def lines(path: Path) -> list[str]:
    """Return the commands of a page."""
    return [line for block in blocks(path) for line in block.splitlines()]


def test_there_is_one_for_each_user():
    assert {path.stem for path in QUICKSTARTS} == USERS
    named = (ROOT / "README.md").read_text()
    assert all(f"docs/quickstarts/{user}.md" in named for user in USERS)


@each
def test_it_is_short_and_says_what_to_do_when_it_fails(path):
    text = path.read_text()
    assert 5 <= len(lines(path)) <= 10
    # Two screens, and no paragraph that is a wall.
    assert len(text.splitlines()) <= 80
    assert max(map(len, text.splitlines())) <= 600
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert titles[-2:] == ["When it fails", "Read on"]


class Reader:
    """Somebody who types a page's commands, one after the other, in one folder."""

    def __init__(self, user: str, folder: Path) -> None:
        self.lines = lines(ROOT / f"docs/quickstarts/{user}.md")
        self.folder = folder
        (folder / "examples").symlink_to(ROOT / "examples")

    def skip(self, *told: str) -> None:
        """Pass by commands that were run for this before."""
        assert tuple(self.lines[: len(told)]) == told
        del self.lines[: len(told)]

    def next(self, **words: str) -> list[str]:
        """Return the words of the next command, as it is run here."""
        program, *rest = (words.get(word, word) for word in shlex.split(self.lines.pop(0)))
        assert program in ("fedllm", "python")
        return [program, *rest, *FEWER.get(rest[0], FEWER.get(" ".join(rest[:2]), []))]

    def run(self, **words: str) -> str:
        """Run the next command, and return what it printed."""
        program, *rest = self.next(**words)
        if program == "python":
            done = subprocess.run([sys.executable, *rest], cwd=self.folder, check=True)
            return str(done.stdout)
        return type_in(rest)

    @contextmanager
    def started(self, word: str) -> Iterator[None]:
        """Run the next command until it says a word, and end it after the block."""
        program = subprocess.Popen(
            [sys.executable, "-m", *self.next()],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert program.stdout is not None
            assert any(word in line for line in program.stdout), f"it ended without {word!r}"
            yield
        finally:
            program.terminate()
            program.communicate(timeout=300)


def type_in(words: list[str]) -> str:
    """Run a command of fedllm in this process, and return what it printed."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (words, done.output[-3000:], done.exception)
    return done.output


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda user: Reader(user, tmp_path)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A folder in which `fedllm demo --quick` was run."""
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, "-m", "fedllm", "demo", "--quick"], cwd=folder, check=True)
    return folder


@pytest.mark.slow
def test_an_operations_engineer(reader, tmp_path):
    read, port = reader("operations"), free_port()
    make_federation(tmp_path / "north", coordinator={"hosts": ["127.0.0.1"], "port": port})
    rows = "".join(f"a message of no {i % 7} importance,{'ab'[i % 2]}\n" for i in range(150))
    (tmp_path / "records.csv").write_text("message,topic\n" + rows)

    def word(output: str, label: str) -> str:
        return re.search(rf"^{label}\s+(\S+)", output, re.MULTILINE)[1]

    assert "ok    python" in read.run()
    said = word(read.run(), "fingerprint")
    sign = ["provision", "sign", "kit/request.json", "--dir", "north", "--fingerprint", said]
    root = word(type_in(sign), "root")
    shutil.copy("north/answers/st-anne.json", "st-anne.json")
    read.run(FINGERPRINT=root)
    assert "site.toml" in read.run()
    with tls_server(tmp_path / "north/kits/coordinator", port):
        assert "Ready" in read.run()
        with read.started("the records are read"):
            pass
    filled(tmp_path / "kit/state/ledger.sqlite")
    assert "epsilon" in read.run().lower()
    assert not read.lines


@pytest.mark.slow
def test_the_coordinators_engineer(reader, tmp_path):
    read = reader("coordinator")
    read.run()
    assert "simulate run.toml" in read.run()
    read.run()
    assert "noise" in read.run()
    read.run()
    assert "tickets-1" in read.run()
    read.run()
    assert (tmp_path / "runs/tickets/report.html").is_file()
    read.run()
    assert (tmp_path / "runs/tickets-merged/use.py").is_file()
    read.run()
    assert "riverside" in read.run()
    assert not read.lines


@pytest.mark.slow
def test_a_protection_officer(reader, demo, tmp_path):
    read = reader("protection-officer")
    read.skip("fedllm demo --quick")
    shutil.copytree(demo / "runs", tmp_path / "runs")
    assert "privacy.epsilon" in read.run()
    assert "7.99" in read.run()
    assert "nothing wrong" in read.run()
    assert "epsilon" in read.run().lower()
    read.run()
    assert "报告" in (tmp_path / "runs/demo/private/report.html").read_text()
    assert not read.lines


@pytest.mark.slow
def test_an_auditor(reader, demo, tmp_path):
    read = reader("auditor")
    assert "checks passed" in read.run()
    read.skip("fedllm demo --quick")
    shutil.copytree(demo / "runs", tmp_path / "runs")
    read.run()
    read.run()
    first = json.loads((tmp_path / "northgate.jsonl").read_text().splitlines()[0])
    assert first
    assert "epsilon" in read.run()
    assert "guesses right" in read.run()
    read.run()
    assert not read.lines


@pytest.mark.slow
def test_a_researcher(reader, tmp_path, capsys):
    read = reader("researcher")
    read.skip(*INSTALLED)
    for _ in range(3):
        read.run()
    assert json.loads(read.run())["label"]
    read.run()
    read.run()
    compared = read.run()
    assert "tickets-1" in compared and "tickets-clear" in compared
    with read.started("http://127.0.0.1:"):
        pass
    assert not read.lines
    (code,) = blocks(ROOT / "docs/quickstarts/researcher.md", "python")
    (tmp_path / "cell.py").write_text(code)
    capsys.readouterr()
    runpy.run_path(str(tmp_path / "cell.py"))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "tickets",
        "tickets-1",
    ]
