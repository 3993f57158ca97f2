"""Whole alignments of a tiny model by rewards whose truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.alignment_models import WANTED, ShareOf, alignment, configuration

from fedllm.alignment.checkpoint import has_checkpoint
from fedllm.errors import CheckpointError, ConfigError, TrainingError
from fedllm.runs.metrics import read_reports

LARGER = {
    "answers": {"new_tokens": 8, "per_prompt": 8},
    "training": {"steps": 16, "prompts": 8, "learning_rate": 0.05, "microbatch_size": 32},
    "selection": {"every": 8},
}


class Turned:
    """Thinks the opposite of another scorer."""

    def __init__(self, other) -> None:
        self._other = other

    def score(self, prompts, answers):
        return -self._other.score(prompts, answers)


class Always:
    """Gives every answer the same."""

    def __init__(self, value: float) -> None:
        self._value = value

    def score(self, prompts, answers):
        return torch.full((len(answers),), self._value)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_the_reward_rises_and_the_model_stays_near(start, tmp_path, algorithm):
    steps = {"grpo": 16, "ppo": 24}[algorithm]
    config = configuration(**{**LARGER, "training": {**LARGER["training"], "steps": steps}})
    found = alignment(start(), tmp_path / "out", algorithm, config).run()
    assert found.gains["reward_gain"] > 1
    assert found.gains["reward_gain_low"] > 0
    assert found.gains["win_rate_low"] > 0.5
    assert 0 < found.test.shares["kl"] < 10
    assert found.course.best_step > 0


def test_a_run_that_was_broken_off_ends_as_one_that_was_not(start, tmp_path):
    config = configuration(training={"steps": 4}, kl={"target": 0.5})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    right = alignment(start(), whole, "ppo", config).run()

    class Stop(Exception):
        pass

    def stop(progress) -> None:
        if progress.step in (0, 3):
            raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            alignment(start(), broken, "ppo", config, told=stop).run()
    # A step that was done after what was kept, and half a line: they are done again.
    with (broken / "metrics.jsonl").open("a") as stream:
        stream.write('{"round": 4, "metrics": null}\n{"round": 5, "me')
    found = alignment(start(), broken, "ppo", config).run()
    assert np.array_equal(found.adapter, right.adapter)
    assert (found.test, found.gains) == (right.test, right.gains)
    varying = ("seconds", "finished")
    left, wanted = (
        [{k: v for k, v in line.items() if k not in varying} for line in lines(folder)]
        for folder in (broken, whole)
    )
    assert left == wanted
    assert [report.round for report in read_reports(broken / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_another_alignment_and_a_damaged_checkpoint_are_not_gone_on_with(start, tmp_path):
    out, config = tmp_path / "out", configuration(training={"steps": 1})
    alignment(start(), out, config=config).run()
    assert has_checkpoint(out / "checkpoints")
    with pytest.raises(ConfigError, match="something else than is given now: algorithm"):
        alignment(start(), out, "ppo", config).run()
    (path,) = (out / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        alignment(start(), out, config=config).run()


def test_it_ends_at_the_ceiling_before_it_learns_on(start, tmp_path):
    config = configuration(
        kl={"coefficient": 0.0, "target": None, "ceiling": 0.2},
        training={"steps": 20, "learning_rate": 0.2},
    )
    found = alignment(start(), tmp_path / "out", config=config).run()
    assert found.course.step < 20
    assert "kl.ceiling" in found.course.ended
    last = lines(tmp_path / "out")[-1]
    assert last["training"]["kl"] > 0.2
    # It learned nothing of that step any more.
    assert "loss" not in last["training"]
    # Nothing was measured before, so that the start is kept.
    assert found.course.best_step == 0
    assert found.test.shares["kl"] == 0


@pytest.mark.slow
def test_the_judge_chooses_and_is_asked_for_nothing_else(start, tmp_path):
    config = configuration(selection={"every": 1}, training={"steps": 6})
    judge = Turned(ShareOf(WANTED))
    found = alignment(start(), tmp_path / "out", config=config, judge=judge).run()
    verdicts = [line["metrics"]["judge"] for line in lines(tmp_path / "out")]
    assert len(set(verdicts)) > 2
    assert found.course.best_step == verdicts.index(max(verdicts))
    assert found.course.best_verdict == max(verdicts)
    # The reward model would have chosen another one.
    rewards = [line["metrics"]["reward"] for line in lines(tmp_path / "out")]
    assert rewards.index(max(rewards)) != found.course.best_step


@pytest.mark.slow
def test_it_ends_when_nothing_better_comes(start, tmp_path):
    config = configuration(training={"steps": 50}, selection={"every": 1, "patience": 2})
    found = alignment(start(), tmp_path / "out", config=config, judge=Turned(ShareOf())).run()
    assert found.course.step < 50
    assert "selection.patience" in found.course.ended


@pytest.mark.slow
def test_a_model_that_is_objected_to_is_not_kept(start, tmp_path):
    # About a half of all answers is too short, and no more than at the start may be.
    config = configuration(guards={"minimum_tokens": 6, "most_faulty": 0.0}, selection={"every": 1})
    found = alignment(start(), tmp_path / "out", config=config).run()
    measured = lines(tmp_path / "out")
    objected = [one["round"] for one in measured if one["note"].startswith("not kept: ")]
    assert objected
    assert found.course.best_step not in objected
    better = {one["round"] for one in measured if one["metrics"]["reward"] > 0}
    assert found.course.best_step in {0, *better} - set(objected)


@pytest.mark.parametrize(("value", "words"), [(1.0, "the same reward"), (float("nan"), "finite")])
def test_rewards_that_teach_nothing_are_refused(start, tmp_path, value, words):
    with pytest.raises(TrainingError, match=words):
        alignment(start(), tmp_path / "out", reward=Always(value)).run()


def test_a_group_of_one_is_none(start, tmp_path):
    config = configuration(answers={"per_prompt": 1})
    with pytest.raises(ConfigError, match="per_prompt = 1"):
        alignment(start(), tmp_path / "out", config=config)
    alignment(start(), tmp_path / "out", "ppo", config)


@pytest.mark.slow
def test_an_encoder_decoder_is_aligned_too(tmp_path, tmp_path_factory):
    from support.serving_runs import make_run
    from support.tiny_models import save_tiny

    base = save_tiny("t5", tmp_path_factory.mktemp("t5"))
    model, lora = {"max_length": 32}, {"rank": 2, "last_layers": 1}
    folder = make_run(base, tmp_path, "instruction", "start", model=model, lora=lora)
    config = configuration(training={"steps": 2}, selection={"every": 1})
    found = alignment(folder, tmp_path / "out", "ppo", config).run()
    assert found.course.step == 2
    assert [line["training"].get("kl", 0.0) for line in lines(tmp_path / "out")][1] == (
        pytest.approx(0.0, abs=1e-9)
    )
