"""The examples that begin with somebody's own file: each command of theirs, and what they find out.

The files are those that the examples make up; what is tried is what anybody's file goes through.
"""

from __future__ import annotations

import csv
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.commands import plan_quality
from fedllm.config import load_run_config
from fedllm.runs.record import read_run_folder

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("own_records", "own_database")


def commands(example: str) -> list[list[str]]:
    """The words of each command of an example's page."""
    text = (ROOT / "examples" / example / "README.md").read_text()
    block = re.search(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    return [shlex.split(line) for line in block.splitlines()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def sample(words: list[str]) -> None:
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)


def fedllm(words: list[str], *more: str) -> str:
    assert words[0] == "fedllm"
    done = CliRunner().invoke(app, [*words[1:], *more])
    assert done.exit_code == 0, (words, done.output[-3000:], done.exception)
    return done.output


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_is_made_up_is_the_same_each_time_and_takes_no_other_files_place(example, here):
    first = commands(example)[0]
    sample(first)
    found = (here / first[-1]).read_bytes()
    again = subprocess.run([sys.executable, *first[1:]], capture_output=True, check=False)
    assert again.returncode != 0
    assert (here / first[-1]).read_bytes() == found
    sample([*first[:-1], "other"])
    assert (here / "other").read_bytes() == found


def test_a_file_of_messages_becomes_a_run(here, monkeypatch):
    monkeypatch.setattr(plan_quality, "reckoned", lambda *_: {})
    first, second, *_ = commands("own_records")
    sample(first)
    with (here / "tickets.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 3001
    assert "note:" not in fedllm(second, "--yes")
    config = load_run_config(here / "run.toml")
    assert (config.data.text, config.data.label) == ("message", "department")
    assert (config.data.unit, config.data.sites) == (None, 10)


def test_a_table_of_patients_becomes_a_run_that_protects_each(here, monkeypatch):
    monkeypatch.setattr(plan_quality, "reckoned", lambda *_: {})
    first, second, *_ = commands("own_database")
    sample(first)
    with sqlite3.connect(here / "notes.db") as database:
        query = "SELECT count(*), count(DISTINCT patient) FROM notes"
        assert database.execute(query).fetchone() == (4000, 1000)
    assert "each person (column 'patient')" in fedllm(second, "--yes")
    config = load_run_config(here / "run.toml")
    assert (config.data.text, config.data.label) == ("note", "department")
    assert config.data.unit == "patient"
    # Nothing was copied.
    assert {path.name for path in here.iterdir()} == {"examples", "notes.db", "run.toml"}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_command_does_what_its_page_says(example, here):
    first, init, train, *rest = commands(example)
    sample(first)
    fedllm(init, "--yes")
    fewer = ["--set", "rounds.count=2"]
    if example == "own_database":
        # What the sites measure is measured in the last round.
        fewer += ["--set", "evaluation.every=2"]
    fedllm(train, *fewer)
    for words in rest:
        fedllm(words)
    (folder,) = (here / "runs").iterdir()
    assert (folder / "report.html").is_file()
    run = read_run_folder(folder)
    assert run.summary["privacy"]["unit"] == ("person" if example == "own_database" else "record")
