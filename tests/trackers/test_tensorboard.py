"""What TensorBoard itself reads back of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.run_folder import rounds, run_config

from fedllm.commands.align import _tracked
from fedllm.errors import ConfigError
from fedllm.runs.metrics import RoundReport
from fedllm.runs.observer import Start, StepReport
from fedllm.trackers import tensorboard as tracker
from fedllm.trackers.tensorboard import TensorBoardObserver


def reports(count=5):
    return [RoundReport.parse(line, "test") for line in rounds(count=count)]


def start(done=0, **changes):
    return Start("r", run_config(**changes), "rounds", 5, done)


def step_of(step):
    return SimpleNamespace(step=step, training={}, measured={})


def read_back(folder):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder))
    found.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }
    texts = [
        event.tensor_proto.string_val[0].decode()
        for tag in found.Tags()["tensors"]
        for event in found.Tensors(tag)
    ]
    return scalars, "".join(texts)


@pytest.mark.slow
def test_each_round_has_its_figures_and_settings_have_no_password(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is missing")
    watching = TensorBoardObserver(tmp_path)
    watching.finished_round(reports()[0])
    watching.started(start(data={"train": "postgresql://ward:secret@host/db"}))
    for report in reports():
        watching.finished_round(report)
    watching.close()
    scalars, texts = read_back(tmp_path)
    assert scalars["test/loss"][0] == (0, 2.75)
    assert [step for step, _ in scalars["test/accuracy"]] == [0, 1, 2, 3, 4, 5]
    assert scalars["privacy/epsilon_at_most"][-1] == (5, pytest.approx(7.9321))
    assert scalars["sites/left_out"][2] == (3, 1.0)
    assert scalars["seconds/train"][0] == (1, 12.0)
    assert "host/db" in texts
    assert "secret" not in texts


@pytest.mark.slow
def test_a_run_that_goes_on_replaces_what_it_does_once_more(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is missing")
    for done in (0, 2):
        watching = TensorBoardObserver(tmp_path)
        watching.started(start(done))
        for report in reports()[done + (1 if done else 0) :]:
            watching.finished_round(report)
        watching.close()
    scalars, _ = read_back(tmp_path)
    assert [step for step, _ in scalars["test/loss"]] == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_pretraining_is_shown_by_its_steps_and_what_has_no_bound_is_no_point(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is missing")
    watching = TensorBoardObserver(tmp_path)
    watching.started(start())
    watching.advanced(StepReport(10, 20, 100, 3.5, 7.0, 1.0, {"bits_per_byte": 2.0}))
    lines = rounds()
    lines[-1]["epsilon"]["Northgate"] = None
    watching.finished_round(RoundReport.parse(lines[-1], "test"))
    watching.close()
    scalars, _ = read_back(tmp_path)
    assert scalars["train/loss"] == [(10, 3.5)]
    assert scalars["test/bits_per_byte"] == [(10, 2.0)]
    assert "privacy/epsilon_at_most" not in scalars


@pytest.mark.slow
def test_an_alignment_is_shown_by_its_steps_and_goes_on(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is missing")
    from fedllm.alignment.loop import Progress

    for steps in ((0, 1, 2), (2, 3)):
        watching = TensorBoardObserver(tmp_path)
        with _tracked(lambda progress: None, [watching]) as heard:
            for step in steps:
                heard(Progress(step, 3, {"kl": 0.5 * step}, {"reward": 2.0} if step else {}))
    scalars, _ = read_back(tmp_path)
    assert scalars["train/kl"] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]
    assert [step for step, _ in scalars["test/reward"]] == [1, 2, 3]


def test_a_tracker_that_fails_costs_no_alignment(tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is missing")
    watching, told = TensorBoardObserver(tmp_path), []
    watching.aligned = lambda *figures: 1 / 0
    with _tracked(told.append, [watching]) as heard:
        for step in range(3):
            heard(step_of(step))
    assert len(told) == 3
    assert capsys.readouterr().err.count("hears no more") == 1


def test_without_the_package_it_says_which_extra_to_add(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="TensorBoard is not installed") as raised:
        TensorBoardObserver(tmp_path)
    assert "'tensorboard'" in raised.value.remedy
