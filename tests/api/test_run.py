"""A finished run, as a program has it; what needs a model is in `test_documented.py`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.run_folder import run_config, summary, write_run

import fedllm
from fedllm.runs.shelf import compare


@pytest.fixture
def run(tmp_path):
    return fedllm.open_run(write_run(tmp_path / "a"))


def test_figures_are_those_of_the_folder(run):
    assert run.name == "made-up"
    assert run.metrics == {"loss": 0.31415, "accuracy": 0.9137}
    assert run.epsilon == 7.9321
    assert run.config.rounds.count == 5
    assert run.curve("accuracy")[0] == (0, 0.19)
    assert len(run.curve("accuracy")) == 6
    assert run.curve("accuracy", at_sites=True) == []
    rows = run.table()
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[3]["left_out"] == 1
    assert rows[5]["seconds"] == 17.0
    assert "accuracy" in rows[5]
    assert "made-up: 5 rounds" in str(run)


def test_what_a_notebook_shows_is_text_whatever_a_run_is_called(tmp_path):
    evil = "<script>alert(1)</script>\u202e"
    folder = write_run(tmp_path / "a\u202e", figures=summary(run=evil))
    shown = fedllm.open_run(folder)._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "\u202e" not in shown


def test_an_epsilon_without_privacy_or_bound_is_none(tmp_path):
    told = summary()
    told["privacy"]["epsilon"] = None
    assert fedllm.open_run(write_run(tmp_path / "a", figures=told)).epsilon is None


def test_what_is_no_finished_run_is_refused_at_once(tmp_path, run):
    with pytest.raises(fedllm.FedllmError, match="there is no"):
        fedllm.open_run(tmp_path / "nothing")
    (run.folder / "summary.json").unlink()
    with pytest.raises(fedllm.FedllmError, match="not finished"):
        fedllm.open_run(run.folder)


def test_runs_are_listed_and_compared_as_the_commands_do_it(tmp_path, run):
    other = write_run(tmp_path / "b", run_config(name="other", seed=7))
    assert [one.name for one in fedllm.list_runs(tmp_path)] == ["made-up", "other"]
    assert fedllm.compare(run, other) == compare([run.folder, other])


@pytest.mark.slow
def test_a_report_is_written_as_the_command_does_it(run):
    path = run.report("zh")
    assert path == run.folder / "report.html"
    assert 'lang="zh' in path.read_text()


def test_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys, json, fedllm\n"
        "first = list(sys.modules)\n"
        "fedllm.configure, fedllm.simulate, fedllm.open_run, fedllm.follow\n"
        "print(json.dumps([first, list(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, then = json.loads(done.stdout)
    assert not [name for name in first if name.startswith("fedllm.")]
    heavy = {"torch", "transformers", "peft", "opacus", "flwr", "ray", "tenseal", "matplotlib"}
    assert heavy.isdisjoint(then)


def test_every_name_that_is_offered_is_there_and_no_other():
    for name in fedllm.__all__:
        assert getattr(fedllm, name) is not None
        assert name in dir(fedllm)
    with pytest.raises(AttributeError, match="magic"):
        fedllm.magic  # noqa: B018
