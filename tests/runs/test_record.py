"""A path that is no run: what it is, and what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.run_folder import write_run
from typer.testing import CliRunner

from fedllm.audit.ledgers.epsilon import find_ledgers
from fedllm.cli import app
from fedllm.config import load_run_config
from fedllm.errors import ConfigError
from fedllm.runs.record import read_run_folder, require_run


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    return Path("runs")


@pytest.mark.parametrize(
    ("path", "words", "remedy"),
    [
        ("runs", "is not a run, but a folder of runs", "give one: runs/a, runs/b"),
        ("runs/a/report.html", "is a file, not the folder of a run", "runs/a"),
        ("alone.csv", "is a file, not the folder of a run", "give the folder of a finished run"),
        ("nowhere", "there is no nowhere", "give the folder of a finished run"),
        ("empty", "is not the folder of a run: it has no run.toml", "such as runs/NAME"),
    ],
)
def test_what_to_give_instead_of_a_path_that_is_no_run(runs, path, words, remedy):
    Path("empty").mkdir()
    Path("alone.csv").write_text("")
    (runs / "a" / "report.html").write_text("")
    for refuse in (require_run, read_run_folder):
        with pytest.raises(ConfigError) as caught:
            refuse(Path(path))
        assert words in caught.value.message
        assert remedy in caught.value.remedy


def test_a_run_that_is_not_finished_is_said_to_be_that(runs):
    (runs / "a" / "summary.json").unlink()
    require_run(runs / "a", finished=False)
    with pytest.raises(ConfigError, match="is not finished") as caught:
        read_run_folder(runs / "a")
    assert "--resume" in caught.value.remedy


@pytest.mark.parametrize(
    "command",
    [["report"], ["canaries"], ["extraction"], ["membership"], ["report", "runs/a", "--beside"]],
)
def test_every_command_that_takes_a_run_says_so(runs, command):
    done = CliRunner().invoke(app, ["audit", *command, "runs"])
    assert isinstance(done.exception, ConfigError)
    assert "give one: runs/a, runs/b" in str(done.exception)


def test_ledgers_are_looked_for_in_runs_and_configurations_in_files(runs):
    with pytest.raises(ConfigError, match="folder of runs") as caught:
        find_ledgers([runs])
    assert "runs/a, runs/b" in caught.value.remedy
    with pytest.raises(ConfigError, match="is a folder, not a TOML file") as caught:
        load_run_config(runs / "a")
    assert caught.value.remedy == "give the file: runs/a/run.toml"
