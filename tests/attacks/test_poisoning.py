"""One site that sends what its records did not give: what the coordinator notices, and what not."""

from __future__ import annotations

import json
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from support.camera import Camera
from support.cutting import attempt_under_way, with_a_failed_attempt
from support.federation import records, small_config, write_jsonl
from support.poison import at_the_bound, odd_signs, poison, times

from fedllm.config import RunConfig
from fedllm.errors import TrainingError
from fedllm.identity.keys import Identity
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.metrics import read_reports
from fedllm.runs.terminal import describe_round
from fedllm_server import loop
from fedllm_server.simulation import simulate

ONE_STEP = {"optimizer": "sgd", "local_steps": 1, "sampling_rate": 0.5, "batch_size": 12}
WAYS = {
    "local": (
        {"noise": "local"},
        {"optimizer": "sgd", "local_steps": 2, "learning_rate": 0.1, "batch_size": 8},
    ),
    "shared": ({"noise": "distributed"}, {**ONE_STEP, "learning_rate": 0.1}),
    "discrete": (
        {"noise": "distributed", "distribution": "discrete_gaussian"},
        {**ONE_STEP, "learning_rate": 1.0},
    ),
    "whole site": ({"unit": "site", "clipping_norm": 0.1}, {"learning_rate": 0.01}),
}
SLOW_WAYS = ("shared", "whole site")


@pytest.fixture
def base(tiny_checkpoint, tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", records(72))
    test = write_jsonl(tmp_path / "test.jsonl", records(12, seed=99))

    def make(privacy=None, training=None, count=3, **rounds) -> RunConfig:
        return small_config(
            tiny_checkpoint("bert"),
            data={"train": str(train), "test": str(test), "labels": None, "sites": 3},
            rounds={"count": count, "min_sites": 3, "optimizer": "momentum", **rounds},
            training=training or {},
            privacy=privacy or {},
            encryption={"bits": 20},
        )

    return make


def lines(out: Path) -> list[dict]:
    return [
        report.model_dump(exclude={"seconds", "started", "finished"})
        for report in read_reports(out / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    "way", ["local", "discrete", *(pytest.param(w, marks=pytest.mark.slow) for w in SLOW_WAYS)]
)
def test_a_sum_that_no_honest_cohort_sends_is_not_applied_and_stays_charged(
    base, tmp_path, monkeypatch, way
):
    privacy, training = WAYS[way]
    # Whole sites under noise go astray by themselves: only the norm is of interest here.
    config = base({**privacy, "epsilon": 20.0}, training, rollback_rise=0.0)
    poison(monkeypatch, "site-01", at_the_bound, {2})
    out = tmp_path / "run"
    summary = simulate(config, out, observers=[])
    before, first, second, third = read_reports(out / "metrics.jsonl")
    assert [list(one.rejected) for one in (before, first, second, third)] == [[], [], ["norm"], []]
    assert first.norm_ratio <= 1 < second.norm_ratio
    assert third.norm_ratio <= 1
    assert "times the most that sites of this software send together" in second.rejected["norm"]
    assert "site-01" not in json.dumps(second.rejected)
    assert second.metrics == first.metrics != third.metrics
    assert second.kept_round is None
    assert "REJECTED" in describe_round(second, 3)
    # All three rounds are charged, at every site.
    for name in summary.site_names:
        keys = Identity.load(name, out / "identities" / name)
        ledger = Ledger.open(out / "ledgers" / f"{name}.sqlite", name, keys)
        assert len(ledger.events_of_run(summary.run_id)) == 3
    page = (out / "report.html").read_text()
    assert "The sum was larger than sites of this software send together" in page
    assert "rounds: 2." in page
    assert "were not tested" not in page


@pytest.mark.slow
def test_a_multiple_of_an_update_is_noticed_where_it_is_beyond_an_honest_cohorts(
    base, tmp_path, monkeypatch
):
    privacy, training = WAYS["local"]
    config = base({**privacy, "epsilon": 400.0}, training, count=2)
    found = {}
    for factor in (1, 1000):
        with monkeypatch.context() as patch:
            poison(patch, "site-02", times(factor), {2})
            simulate(config, tmp_path / str(factor), observers=[])
        found[factor] = read_reports(tmp_path / str(factor) / "metrics.jsonl")[2]
    assert (found[1].rejected, list(found[1000].rejected)) == ({}, ["norm"])


@pytest.mark.parametrize("said", [1, 8, 32, 64])
def test_a_site_that_says_it_is_small_does_not_switch_the_norm_test_off(base, said):
    """Noise of all sites as if each was that small let a site send whatever its levels hold."""
    training = {"optimizer": "sgd", "local_steps": 4, "batch_size": 64, "learning_rate": 0.1}
    mechanism, values = mechanism_of(base({"epsilon": 8.0}, training)), 30_000
    honest = [mechanism.announced_units(1000)] * 9
    own = mechanism.announced_units(said)
    limits = [
        mechanism.sum_law([*honest, site], 1, [0.0], values).limit(values, 2)
        for site in (honest[0], own)
    ]
    assert limits[1] < 2.5 * limits[0]
    # Every value at its bound, even against all that the others may send.
    assert sum(limits) < sqrt(values)


def test_a_run_whose_sums_are_all_rejected_stops_and_may_be_resumed(base, tmp_path, monkeypatch):
    privacy, training = WAYS["whole site"]
    config = base({**privacy, "epsilon": 20.0}, training, count=5)
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, "site-01", at_the_bound, {1, 2, 3})
        with pytest.raises(TrainingError, match="3 rounds in a row were rejected") as caught:
            simulate(config, out, observers=[])
    assert "no further round is charged" in caught.value.message
    assert "revoke it" in caught.value.remedy
    assert [line["round"] for line in lines(out)] == [0, 1, 2, 3]
    state = load_checkpoint(out / "checkpoints")
    assert (state.round, len(state.noise)) == (3, 3)
    # The site has been put right.
    assert simulate(config, out, resume=True, observers=[]).rounds == 5


UNBOUNDED = {"optimizer": "sgd", "local_steps": 1, "learning_rate": 0.1, "batch_size": 8}


@pytest.fixture
def open_run(base):
    """Without privacy, where no law is known of the norm, and bounds are wide."""
    return base({"clipping_norm": 300.0}, UNBOUNDED)


def test_a_model_that_got_much_worse_is_rolled_back(open_run, tmp_path, monkeypatch):
    clean, out = tmp_path / "clean", tmp_path / "run"
    two = open_run.model_copy(update={"rounds": open_run.rounds.model_copy(update={"count": 1})})
    simulate(two, clean, observers=[])
    good = load_checkpoint(clean / "checkpoints")
    poison(monkeypatch, "site-00", odd_signs, {2, 3})
    summary = simulate(open_run, out, observers=[])
    _, first, second, third = read_reports(out / "metrics.jsonl")
    assert (first.rejected, list(second.rejected), list(third.rejected)) == ({}, ["test"], ["test"])
    assert second.metrics["loss"] > first.metrics["loss"] + 1
    assert (second.kept_round, third.kept_round, second.norm_ratio) == (1, 1, None)
    assert f"back to round {1}" in second.rejected["test"]
    assert "REJECTED, back to round 1" in describe_round(second, 3)
    state = load_checkpoint(out / "checkpoints")
    assert np.array_equal(state.adapter, good.adapter)
    for name, values in good.optimizer.items():
        assert np.array_equal(state.optimizer[name], values), name
    # The end is what the run went back to, in every figure.
    assert summary.metrics == first.metrics
    page = (out / "report.html").read_text()
    assert "went back to an earlier model, after rounds: 2, 3." in page
    assert "were not tested" in page


def test_without_the_gate_the_same_run_ends_with_the_poisoned_model(
    open_run, tmp_path, monkeypatch
):
    never = open_run.rounds.model_copy(update={"rollback_rise": 0.0, "count": 2})
    poison(monkeypatch, "site-00", odd_signs, {2})
    summary = simulate(
        open_run.model_copy(update={"rounds": never}), tmp_path / "run", observers=[]
    )
    assert summary.metrics["loss"] > summary.metrics_before["loss"] + 1
    assert lines(tmp_path / "run")[2].get("rejected") is None


@pytest.mark.slow
def test_a_poisoned_run_killed_after_any_write_goes_on_to_the_same_end(
    open_run, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    poison(monkeypatch, "site-00", odd_signs, {2})
    with monkeypatch.context() as patch:
        camera = Camera(out, tmp_path / "shots", patch)
        whole = simulate(open_run, out, observers=[])
    assert [one.get("kept_round") for one in lines(out)] == [None, None, 1, None]
    names = [name for name, _ in camera.taken]
    # Before anybody was asked, with the sum, with the verdict, with the line, with a part of it.
    begun = names.index("checkpoints/round-00002")
    ends = names.index("checkpoints/round-00003")
    judged = [name for name in names[begun:ends] if name == "checkpoints/round-00002"]
    assert len(judged) == 3
    ended = {None: (whole, out)}
    for name, shot in camera.taken[begun - 1 : ends]:
        attempt = attempt_under_way(shot)
        if attempt not in ended:
            other = tmp_path / f"failed-{attempt}"
            run = partial(simulate, open_run, other, observers=[])
            ended[attempt] = (with_a_failed_attempt(attempt, run), other)
        summary, folder = ended[attempt]
        again = simulate(open_run, shot, resume=True, observers=[])
        assert again.adapter_sha256 == summary.adapter_sha256, name
        assert again.metrics == summary.metrics, name
        assert lines(shot) == lines(folder), name


def test_a_gate_looks_where_the_run_evaluates_and_goes_back_behind_what_it_did_not_see(
    base, tmp_path, monkeypatch
):
    config = base({"clipping_norm": 300.0}, UNBOUNDED, count=4, evaluate_every=2)
    poison(monkeypatch, "site-00", odd_signs, {3})
    out = tmp_path / "run"
    summary = simulate(config, out, observers=[])
    found = read_reports(out / "metrics.jsonl")
    assert [one.kept_round for one in found] == [None, None, None, None, 2]
    assert summary.metrics == found[2].metrics


def test_figures_that_are_no_numbers_are_rolled_back_where_there_were_some(
    open_run, tmp_path, monkeypatch
):
    losses = iter([2.0, 1.5, float("nan"), 2.4])
    monkeypatch.setattr(loop, "evaluate", lambda model, data: {"loss": next(losses)})
    out = tmp_path / "run"
    assert simulate(open_run, out, observers=[]).metrics == {"loss": 2.4}
    second = read_reports(out / "metrics.jsonl")[2]
    assert "is no number, and the best so far was 1.5; back to round 1" in second.rejected["test"]
