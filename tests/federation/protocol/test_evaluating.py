"""Evaluation at the sites: what is summed, what it costs, and who may be asked."""

from __future__ import annotations

import hmac
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chance import standard_deviation_bounds
from support.federation import LABELS, build, records, small_config

from fedllm.config import RunConfig, parse
from fedllm.data.records import Record
from fedllm.errors import ConfigError, FedllmError, RefusedError
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.coordinator.rounds import statement_of
from fedllm.federation.protocol.envelopes import signed_update, verified_update
from fedllm.federation.protocol.evaluating import (
    Holdout,
    noised_sum,
    read_sum,
    sum_shape,
)
from fedllm.mechanisms import EvaluationSums, mechanism_of
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, PoissonGaussian
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.randomness import RandomStream
from fedllm.tasks.scores import LOSS_LIMIT_NATS, UnitScores
from fedllm.training.evaluate import evaluate, unit_scores

PRIVATE = {"epsilon": 4.0, "delta": 1e-3, "noise": "local"}


def evaluated(federation, number=1, attempt=None):
    """Run one evaluation round and return its outcome."""
    cohort = gather_cohort(federation, federation.terms, number, federation.roster, lambda _: None)
    attempt = attempt or number
    statement = statement_of(federation.terms, cohort, number, attempt, None, "evaluation")
    return federation.run(statement, cohort)


def sequences(dataset):
    """Return the token sequences of a data set."""
    return {
        tuple(dataset.batch(np.array([i]))["input_ids"][0].tolist()) for i in range(len(dataset))
    }


def ledger_of(federation, name="site-0"):
    return Ledger.open(federation.folder / f"{name}.sqlite", name, federation.identities[name])


@pytest.mark.parametrize("encryption", [{}, {"recover_dropouts": False}, {"scheme": "none"}])
def test_opened_sums_are_those_of_all_held_out_records(tiny_checkpoint, tmp_path, encryption):
    config = small_config(
        tiny_checkpoint("bert"),
        evaluation={"every": 1, "holdout": 0.5},
        encryption=encryption,
    )
    federation = build(tmp_path, config)
    outcome = evaluated(federation)
    sets = [site._data.datasets(config, federation.model()) for site in federation.sites.values()]
    assert all(len(one.held_out) + len(one.training) == 40 for one in sets)
    figures = [evaluate(federation.model(), one.held_out) for one in sets]
    count = sum(len(one.held_out) for one in sets)
    told = read_sum(config, LABELS, outcome.mean * 3, 3).whole
    assert told["units"] == pytest.approx(count, abs=0.1)
    for name in ("loss", "accuracy"):
        expected = sum(f[name] * f["records"] for f in figures) / count
        assert told[name] == pytest.approx(expected, abs=0.03)
        assert told[f"{name}_noise"] == 0


def test_held_out_records_are_never_trained_on(tiny_checkpoint, tmp_path, monkeypatch):
    config = small_config(tiny_checkpoint("bert"), evaluation={"every": 1, "holdout": 0.5})
    federation = build(tmp_path, config)
    trained = []
    import fedllm.federation.site.work as module

    original = module.train_locally

    def listen(model, dataset, *args, **kwargs):
        trained.append(dataset)
        return original(model, dataset, *args, **kwargs)

    monkeypatch.setattr(module, "train_locally", listen)
    federation.round()
    for site, dataset in zip(federation.sites.values(), trained, strict=True):
        sets = site._data.datasets(config, federation.model())
        assert dataset is sets.training
        assert sequences(sets.held_out).isdisjoint(sequences(dataset))


@given(st.binary(min_size=32, max_size=32), st.floats(0.05, 0.95))
def test_a_person_is_on_one_side_whatever_the_order(key, fraction):
    rows = records(30, unit=lambda i: f"person {i % 7}")
    holdout = Holdout(key, fraction)
    kept, held = holdout.split(rows)
    assert not {row.unit for row in kept} & {row.unit for row in held}
    again, _ = holdout.split(list(reversed(rows)))
    assert {id(row) for row in again} == {id(row) for row in kept}
    assert key.hex() not in repr(holdout)


def test_scores_are_means_of_each_unit(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), data={"unit": "who"})
    rows = records(40, unit=lambda i: f"person {i % 9}")
    federation = build(tmp_path, config, {f"site-{i}": rows for i in range(3)})
    dataset = federation.sites["site-0"]._data.datasets(config, federation.model()).training
    scores = unit_scores(federation.model(), dataset)
    assert scores.shape == (9, 2)
    whole = evaluate(federation.model(), dataset)
    weights = np.bincount(dataset.units)
    assert (scores * weights[:, None]).sum(0) / 40 == pytest.approx(
        [whole["loss"], whole["accuracy"]]
    )


odd = st.floats() | st.sampled_from([float("nan"), float("inf"), -float("inf"), -1.0, 1e300])


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), max_size=20),
    st.tuples(odd, odd),
)
def test_one_unit_moves_the_sum_by_no_more_than_what_is_charged(rows, one):
    """The noise is scaled to the square root of three; NaN and huge scores change nothing."""
    config = parse(RunConfig, plain_values(), "test")
    without = np.array(rows, dtype=np.float64).reshape(-1, 2)
    with_it = np.vstack([without, np.array([one])])
    difference = summed(config, with_it) - summed(config, without)
    assert np.linalg.norm(difference) <= np.sqrt(3) + 1e-5


def summed(config, values, units=None, parts=None, noise=None):
    """Return a site's sum over records with such scores."""
    units = np.arange(len(values)) if units is None else np.array(units)
    parts = None if parts is None else np.array(parts)
    found = UnitScores.of_records(np.array(values, dtype=np.float64), units, parts)
    return noised_sum(config, ("a", "b"), found, noise or RandomStream.seeded(0))


def plain_values(**sections):
    values = {
        "name": "x",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": "t", "labels": ["a", "b"]},
        "rounds": {"count": 10},
        "evaluation": {"every": 4},
    }
    return {**values, **sections}


def test_the_noise_has_the_standard_deviation_that_is_charged():
    config = parse(RunConfig, plain_values(privacy=PRIVATE), "test")
    event = EvaluationSums(config).event
    draws = np.array(
        [summed(config, np.zeros((0, 2)), noise=RandomStream.secure()) for _ in range(4000)]
    )
    low, high = standard_deviation_bounds(draws.size, event.noise_multiplier * np.sqrt(3))
    assert low < draws.std() < high
    told = read_sum(config, (), np.array([400.0, 100.0, 300.0]), 5).whole
    assert told["accuracy"] == pytest.approx(0.75)
    assert told["loss"] == pytest.approx(0.25 * LOSS_LIMIT_NATS)
    sigma = event.noise_multiplier * np.sqrt(3) * np.sqrt(5) / 400
    assert told["accuracy_noise"] == pytest.approx(sigma * np.sqrt(1 + 0.75**2))


@pytest.mark.parametrize(
    ("every", "count", "rounds"), [(0, 5, ()), (4, 10, (4, 8, 10)), (5, 10, (5, 10)), (9, 4, (4,))]
)
def test_which_rounds_are_evaluated(every, count, rounds):
    config = parse(
        RunConfig, plain_values(evaluation={"every": every}, rounds={"count": count}), "test"
    )
    assert EvaluationSums(config).rounds == rounds


@pytest.mark.parametrize("noise", [pytest.param("local", marks=pytest.mark.slow), "distributed"])
def test_training_and_evaluation_together_keep_the_runs_epsilon(tiny_checkpoint, tmp_path, noise):
    config = small_config(
        tiny_checkpoint("bert"),
        privacy={**PRIVATE, "noise": noise},
        training={"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.2},
        evaluation={"every": 1, "holdout": 0.5, "epsilon": 1.0},
        rounds={"count": 2},
    )
    federation = build(tmp_path, config)
    multipliers = []
    for number in (1, 2):
        multiplier = mechanism_of(config).announced_noise(number, multipliers)
        multipliers.append(multiplier)
        federation.round(number, number, noise_multiplier=multiplier)
        evaluated(federation, number)
    events = ledger_of(federation).events_of_run("run-1")
    kinds = [type(event) for event in events]
    assert kinds == [PoissonGaussian, Gaussian, PoissonGaussian, Gaussian]
    spent = epsilon(events, 1e-3).value
    assert 3.9 < spent <= 4.0
    assert epsilon(EvaluationSums(config).planned, 1e-3).value == pytest.approx(1.0, abs=0.01)
    training = [event for event in events if isinstance(event, PoissonGaussian)]
    assert epsilon(training, 1e-3).value < 3.95, "evaluation must be paid for by training"
    if noise == "distributed":
        ledger = ledger_of(federation)
        alone = [e for e in ledger.events("", "colluders") if isinstance(e, Gaussian)]
        charged = [e for e in events if isinstance(e, Gaussian)]
        assert alone[0].noise_multiplier == pytest.approx(
            charged[0].noise_multiplier / np.sqrt(config.rounds.min_sites)
        )


def test_an_evaluation_that_was_not_planned_is_refused(tiny_checkpoint, tmp_path):
    config = small_config(
        tiny_checkpoint("bert"),
        privacy=PRIVATE,
        evaluation={"every": 2, "holdout": 0.5, "epsilon": 1.0},
        rounds={"count": 2},
    )
    federation = build(tmp_path, config)
    with pytest.raises(RefusedError, match="no evaluation at the sites left"):
        evaluated(federation, 1)
    evaluated(federation, 2)
    # The authority refuses it again, and a site another one.
    with pytest.raises(FedllmError, match="opened before"):
        evaluated(federation, 2)
    federation.authority._opened._seen.clear()
    with pytest.raises(FedllmError, match="carried out before"):
        evaluated(federation, 2)
    with pytest.raises(RefusedError, match="no evaluation at the sites left"):
        evaluated(federation, 2, attempt=3)
    assert ledger_of(federation).events_of_run("run-1", "evaluation") == [
        EvaluationSums(config).event
    ]


def test_an_evaluation_without_privacy_is_charged_as_such(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), evaluation={"every": 1, "holdout": 0.5})
    federation = build(tmp_path, config)
    evaluated(federation)
    assert ledger_of(federation).events_of_run("run-1") == [NonPrivate()]


def test_scores_cannot_pass_for_an_update(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), evaluation={"every": 1, "holdout": 0.5})
    federation = build(tmp_path, config)
    held = {}

    def listen(kind, name, message):
        if kind == "train request":
            held["plan"], held["statement"] = message.plan, message.header.statement
        return message

    federation.tamper = listen
    evaluated(federation)
    from fedllm.encryption.plan import EncryptionPlan
    from fedllm.federation.protocol.round_statement import RoundStatement
    from fedllm.federation.protocol.wire import parse_header

    plan = EncryptionPlan.from_bytes(held["plan"])
    statement = parse_header(RoundStatement, held["statement"])
    signed = signed_update(
        bytes(plan.update_bytes), statement, plan, federation.identities["site-0"]
    )
    verified_update(signed, statement, plan, "site-0", federation.roster)
    as_update = statement.model_copy(update={"purpose": "update"})
    with pytest.raises(FedllmError, match="not for this round"):
        verified_update(signed, as_update, plan, "site-0", federation.roster)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"encryption": {"scheme": "ckks"}}, "exact sums"),
        ({"privacy": {"epsilon": 0.4}}, "smaller than privacy.epsilon"),
    ],
)
def test_settings_that_cannot_work_are_refused(sections, words):
    with pytest.raises(ConfigError, match=words):
        parse(RunConfig, plain_values(**sections), "test")


def test_who_is_held_out_follows_from_the_key_alone():
    """The share is that of 64 bits of HMAC-SHA-256, compared exactly."""
    rows = [Record({"text": str(number)}, f"person {number}", None, "x") for number in range(300)]
    for fraction in (0.1, 0.5):
        kept, held = Holdout(b"k" * 32, fraction).split(rows)
        below = [
            row
            for row in rows
            if Fraction(int(hmac.digest(b"k" * 32, row.unit.encode(), "sha256").hex()[:16], 16))
            < Fraction(fraction) * 2**64
        ]
        assert held == below
        assert kept == [row for row in rows if row not in below]
        assert held


def test_evaluations_without_room_are_refused_before_the_first_round(tiny_checkpoint, tmp_path):
    asked = {"every": 1, "holdout": 0.3, "epsilon": 1e-4}
    privacy = {**PRIVATE, "delta": 1e-9}
    config = small_config(tiny_checkpoint("bert"), privacy=privacy, evaluation=asked)
    for ask in (
        lambda: sum_shape(config, "evaluation", (), LABELS),
        lambda: build(tmp_path, config),
    ):
        with pytest.raises(ConfigError, match="leaves no room for the sums of evaluation"):
            ask()
    without = small_config(tiny_checkpoint("bert"), privacy=PRIVATE)
    assert sum_shape(without, "evaluation", (), LABELS).bits == 24
