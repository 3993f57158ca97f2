"""The code of docs/api.md, and what it says of runs that are broken off."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.federation import config_values, records, write_jsonl

import fedllm
from fedllm.config import parse, to_toml
from fedllm.errors import InterruptedRunError
from fedllm.runs.job import Job, write_job
from fedllm.runs.observer import Observer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tiny_checkpoint, tmp_path_factory):
    """A folder with a run.toml and its records, as a reader of the page has it."""
    folder = tmp_path_factory.mktemp("place")
    train = write_jsonl(folder / "train.jsonl", records(90))
    test = write_jsonl(folder / "test.jsonl", records(20, seed=9))
    values = config_values(
        tiny_checkpoint("bert"),
        data={"train": str(train), "test": str(test)},
        privacy={"epsilon": 9.0, "noise": "local"},
        training={"sampling_rate": 0.2},
    )
    (folder / "run.toml").write_text(to_toml(parse(fedllm.RunConfig, values, "test")))
    return folder


def test_the_code_of_the_page_does_what_it_says(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    told = capsys.readouterr().out
    assert re.search(r"^2 \{'loss'", told, re.MULTILINE)
    assert "round 1: site-0" in told
    assert (place / "runs" / "ward-8" / "report.html").exists()
    run = names["run"]
    assert run.predict("one text")[0].answer in run.predict(["one text"])[0].words(0)
    with pytest.raises(fedllm.FedllmError, match="writes none"):
        run.generate(["hello"])
    with pytest.raises(fedllm.FedllmError, match="judges no answers"):
        run.judge([("hello", ["a", "b"])])


def test_a_loop_that_is_left_stops_the_run_which_then_goes_on(place, tmp_path):
    out, config = tmp_path / "out", fedllm.configure(place / "run.toml", rounds={"count": 4})
    for report in fedllm.simulate_rounds(config, out):
        if report.round == 1:
            break
    assert not (out / "summary.json").exists()
    with pytest.raises(fedllm.FedllmError, match="not empty"):
        list(fedllm.simulate_rounds(config, out))
    seen = [report.round for report in fedllm.simulate_rounds(config, out, resume=True)]
    assert seen[-1] == 4
    assert [report.round for report in fedllm.open_run(out).rounds] == [0, 1, 2, 3, 4]


class Interrupting(Observer):
    def finished_round(self, report):
        if report.round == 1:
            raise KeyboardInterrupt


def test_an_interrupted_run_says_how_it_goes_on_and_a_failing_watcher_loses_none(place, tmp_path):
    config, heard = fedllm.configure(place / "run.toml"), list[int]()

    def failing(report):
        heard.append(report.round)
        raise ValueError("of the caller's own")

    with pytest.raises(InterruptedRunError, match="finished rounds are kept") as raised:
        fedllm.simulate(
            config, tmp_path / "a", observers=[Interrupting()], on_round=failing, quiet=True
        )
    assert "resume=True" in raised.value.remedy
    assert heard == [0]
    run = fedllm.simulate(config, tmp_path / "a", resume=True, quiet=True)
    assert len(run.rounds) == 3


def test_a_run_of_another_process_is_followed_to_its_end(place, tmp_path):
    out = tmp_path / "out"
    arguments = ["simulate", str(place / "run.toml"), "--out", str(out)]
    board = find_spec("tensorboard") is not None
    arguments += ["--tensorboard", str(tmp_path / "board")] if board else []
    with subprocess.Popen([sys.executable, "-m", "fedllm", *arguments]) as program:
        while not (out / ".lock").exists() or not (out / "run.toml").exists():
            assert program.poll() is None
            threading.Event().wait(0.1)
        assert [report.round for report in fedllm.follow(out)] == [0, 1, 2]
        assert program.wait() == 0
    assert any((tmp_path / "board").glob("events.*")) == board
    assert len(list(fedllm.follow(out))) == 3
    error = {"kind": "BudgetError", "message": "the budget is spent", "remedy": "raise it"}
    write_job(out, Job("x", "failed", "2026-01-01", 1, error))
    with pytest.raises(fedllm.FedllmError, match="the budget is spent"):
        list(fedllm.follow(out))


@pytest.mark.data
def test_the_notebook_runs_as_a_script(public_data, tmp_path):
    more = {"FEDLLM_DATA": str(public_data), "QUICK": "1", "OUT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "examples/notebook/two_epsilons.py"],
        env={**os.environ, **more, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" holds -> ") == 2
    assert "privacy.epsilon" in done.stdout
