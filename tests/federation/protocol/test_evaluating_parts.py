"""Quality by label or group at the sites: what one unit adds, its noise, and what is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chance import standard_deviation_bounds
from support.federation import LABELS, build, records, small_config

from fedllm.config import RunConfig, parse, to_toml
from fedllm.errors import ConfigError
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.coordinator.rounds import statement_of
from fedllm.federation.protocol.evaluating import (
    noised_sum,
    part_names,
    parts_of,
    read_sum,
    sum_shape,
    unit_vector,
)
from fedllm.mechanisms import EvaluationSums
from fedllm.randomness import RandomStream
from fedllm.tasks.scores import UnitScores
from fedllm.training.evaluate import evaluate_parts, scores_of_units

NAMES = ("a", "b", "c")
# (1, loss, accuracy), of the whole and of a part.
LONGEST = np.sqrt(6)


def asked(task="classification", evaluation=None, **sections):
    parts = {"parts": "label"} if evaluation is None else evaluation
    values = {
        "name": "x",
        "task": task,
        "model": {"path": "m"},
        "data": {"train": "t"},
        "rounds": {"count": 10},
        "evaluation": {"every": 4, **parts},
    }
    return parse(RunConfig, {**values, **sections}, "test")


def summed(config, values, units, parts, noise=None):
    """Return a site's sum over records with such scores."""
    values = np.array(values, dtype=np.float64).reshape(-1, 2)
    units, parts = np.array(units, dtype=np.int64), np.array(parts, dtype=np.int64)
    found = UnitScores.of_records(values, units, parts)
    return noised_sum(config, NAMES, found, noise or RandomStream.seeded(0))


odd = st.floats() | st.sampled_from([float("nan"), float("inf"), -float("inf"), -1.0, 8.0, 1e300])
record = st.tuples(odd, odd, st.integers(0, 5), st.integers(-1, 2))


@settings(max_examples=40)
@given(st.lists(record, max_size=12), st.lists(record, min_size=1, max_size=6))
def test_one_unit_moves_the_sum_by_no_more_than_is_hidden_wherever_its_records_are(others, its):
    config = asked()
    rows = [*others, *((*row[:2], 9, row[3]) for row in its)]
    scores = [row[:2] for row in rows]
    units, parts = ([row[place] for row in rows] for place in (2, 3))
    n = len(others)
    added = summed(config, scores, units, parts) - summed(config, scores[:n], units[:n], parts[:n])
    assert added.shape == (12,)
    assert np.linalg.norm(added) <= unit_vector(config, NAMES).norm * (1 + 1e-5)
    whole, *blocks = np.split(added, 4)
    assert whole[0] == pytest.approx(1.0, abs=1e-6)
    told = [row[3] for row in its]
    for part, block in enumerate(blocks):
        # Of each part it has its share, and the values of none are larger than that.
        assert block[0] == pytest.approx(told.count(part) / len(its), abs=1e-6)
        assert ((block >= -1e-6) & (block <= block[0] + 1e-6)).all()


def test_the_bound_is_as_small_as_it_can_be_and_does_not_grow_with_the_parts():
    config, many = asked(), [f"label-{number}" for number in range(1000)]
    assert unit_vector(config, NAMES).norm == unit_vector(config, many).norm == LONGEST
    assert unit_vector(config, many).length == 3003
    assert np.linalg.norm(summed(config, [8.0, 1.0], [0], [2])) == pytest.approx(LONGEST)
    # One without parts sends what it always sent.
    plain = asked(evaluation={})
    assert (unit_vector(plain, NAMES).length, unit_vector(plain, NAMES).norm) == (3, np.sqrt(3))
    assert "parts" not in to_toml(plain)
    assert "groups" not in to_toml(plain)


def test_a_vector_that_is_too_long_is_cut_and_one_that_is_no_number_adds_nothing():
    unit = unit_vector(asked(), NAMES)
    sums = EvaluationSums(asked())
    long, good = np.ones(12), np.eye(12)[0]
    assert np.linalg.norm(sums.total([long], unit)) == pytest.approx(LONGEST)
    np.testing.assert_allclose(sums.total([long, good], unit), LONGEST / np.sqrt(12) * long + good)
    assert (sums.total([np.full(12, np.nan), good], unit) == good).all()
    assert sums.total([], unit).tolist() == [0.0] * 12


def test_the_noise_hides_a_whole_and_a_part_in_every_entry():
    config = asked(privacy={"epsilon": 4.0, "delta": 1e-3, "noise": "local"})
    multiplier = EvaluationSums(config).event.noise_multiplier
    # What is charged is what is charged without parts.
    assert (
        multiplier
        == EvaluationSums(
            asked(evaluation={}, privacy={"epsilon": 4.0, "delta": 1e-3})
        ).event.noise_multiplier
    )
    draws = np.array([summed(config, [], [], [], RandomStream.secure()) for _ in range(400)])
    for block in np.split(draws, 4, axis=1):
        low, high = standard_deviation_bounds(block.size, multiplier * LONGEST)
        assert low < block.std() < high


def test_a_part_says_its_means_with_their_noise_or_nothing():
    config = asked(privacy={"epsilon": 4.0, "delta": 1e-3, "noise": "local"})
    sigma = EvaluationSums(config).deviation(LONGEST) * np.sqrt(5)
    # Noise of a mean loss is a tenth of its limit here, and a little less further on.
    least = sigma * np.sqrt(1 + 0.5**2) / 0.1
    blocks = [
        [2000.0, 500.0, 1500.0],
        [least * 1.01, least * 0.505, 0.0],
        [least * 0.99, least * 0.495, 0.0],
        [-3.0, 4.0, 5.0],
    ]
    told = read_sum(config, NAMES, np.concatenate(blocks), 5)
    assert told.whole["accuracy"] == 0.75
    assert told.whole["accuracy_noise"] == pytest.approx(sigma / 2000 * np.sqrt(1 + 0.75**2))
    assert list(told.parts) == list(NAMES)
    assert told.parts["a"]["units"] == least * 1.01
    assert told.parts["a"]["loss"] == pytest.approx(4.0)
    assert 0.79 < told.parts["a"]["loss_noise"] < 0.8
    assert set(told.parts["b"]) == {"units", "accuracy", "accuracy_noise"}
    assert told.parts["c"] == {}
    assert read_sum(asked(evaluation={}), NAMES, np.array([4.0, 1.0, 2.0]), 5).parts == {}


def test_records_of_no_group_that_is_told_count_in_the_whole_alone(tiny_checkpoint):
    groups = {"parts": "group", "groups": ["north", "south"]}
    config = small_config(tiny_checkpoint("bert"), evaluation={"every": 1, **groups})
    assert part_names(config, LABELS) == ("north", "south")
    made = records(5)
    dataset = _dataset(config, made)
    assert parts_of(config, LABELS, dataset).tolist() == [-1] * 5
    of = ("south", "north", "South", None, "")
    dataset = _dataset(config, [replace(r, group=g) for r, g in zip(made, of, strict=True)])
    assert parts_of(config, LABELS, dataset).tolist() == [1, 0, -1, -1, -1]
    by_label = small_config(tiny_checkpoint("bert"), evaluation={"every": 1, "parts": "label"})
    found = parts_of(by_label, LABELS, dataset).tolist()
    assert found == [LABELS.index(r.values["label"]) for r in made]
    # A head that is smaller than a label's number would put it into another's block.
    assert max(parts_of(by_label, LABELS[:1], dataset)) < 1
    plain = small_config(tiny_checkpoint("bert"), evaluation={"every": 1})
    assert parts_of(plain, LABELS, dataset) is None


def _dataset(config, rows):
    from fedllm.tasks import task_of
    from fedllm.tasks.cache import ModelCache

    model = ModelCache().get(config, LABELS)
    return task_of(config.task).encode(rows, model.tokenizer, 16, LABELS)


@pytest.mark.parametrize("kind", ["label", "group"])
def test_opened_sums_say_what_each_part_of_all_held_out_records_says(
    tiny_checkpoint, tmp_path, kind
):
    told = {"parts": kind, "groups": ["north", "south"] if kind == "group" else None}
    config = small_config(
        tiny_checkpoint("bert"),
        evaluation={"every": 1, "holdout": 0.5, **told},
        encryption={"scheme": "none"},
    )
    sites = {
        f"site-{number}": [
            replace(r, group=("north", "south", "elsewhere", None)[i % 4])
            for i, r in enumerate(records(40, number))
        ]
        for number in range(3)
    }
    federation = build(tmp_path, config, sites)
    cohort = gather_cohort(federation, federation.terms, 1, federation.roster, lambda _: None)
    statement = statement_of(federation.terms, cohort, 1, 1, None, "evaluation")
    outcome = federation.run(statement, cohort)
    found = read_sum(config, LABELS, outcome.mean * 3, 3)
    model = federation.model()
    held = [s._data.datasets(config, model).held_out for s in federation.sites.values()]
    assert found.whole["units"] == pytest.approx(sum(map(len, held)), abs=0.1)
    for place, name in enumerate(part_names(config, LABELS)):
        own = [
            evaluate_parts(model, one, [str(p) for p in parts_of(config, LABELS, one)])
            for one in held
        ]
        figures = [one[str(place)] for one in own if str(place) in one]
        count = sum(f["records"] for f in figures)
        assert found.parts[name]["units"] == pytest.approx(count, abs=0.1)
        for score in ("loss", "accuracy"):
            mean = sum(f[score] * f["records"] for f in figures) / count
            assert found.parts[name][score] == pytest.approx(mean, abs=0.06)


def test_a_person_counts_in_each_part_by_its_share_of_records(tiny_checkpoint):
    config = small_config(tiny_checkpoint("bert"))
    rows = records(6, unit=lambda i: "anne" if i < 4 else "bob")
    dataset = _dataset(config, rows)
    from fedllm.tasks.cache import ModelCache

    model = ModelCache().get(config, LABELS)
    parts = np.array([0, 2, 2, -1, 1, 1])
    found = scores_of_units(model, dataset, parts)
    assert found.owners.tolist() == [0, 0, 1]
    assert found.parts.tolist() == [0, 2, 1]
    assert found.shares.tolist() == [0.25, 0.5, 1.0]
    alone = scores_of_units(model, replace(dataset, units=np.arange(6))).values
    np.testing.assert_allclose(
        found.in_parts, [alone[0], alone[1:3].mean(axis=0), alone[4:].mean(axis=0)]
    )
    np.testing.assert_allclose(found.values, [alone[:4].mean(axis=0), alone[4:].mean(axis=0)])


GROUPS = {"parts": "group", "groups": ["a", "b"]}


@pytest.mark.parametrize(
    ("task", "evaluation", "words"),
    [
        ("causal", {"parts": "label"}, "needs one label for each record"),
        ("token_classification", {"parts": "label"}, "needs one label for each record"),
        ("classification", {**GROUPS, "every": 0}, "set evaluation.every, or leave parts out"),
        ("causal", {"parts": "group"}, "evaluation.groups is missing"),
        ("causal", {"parts": "group", "groups": []}, "evaluation.groups is missing"),
        ("causal", {"groups": ["a"]}, "needs evaluation.parts = 'group'"),
        ("classification", {**GROUPS, "parts": "label"}, "needs evaluation.parts = 'group'"),
        ("causal", {**GROUPS, "groups": ["a", "b", "a"]}, "names 'a' twice"),
        ("causal", {**GROUPS, "groups": ["a", " b"]}, "' b' is empty, has white space"),
        ("causal", {**GROUPS, "groups": [""]}, "'' is empty"),
        ("causal", {**GROUPS, "groups": ["a" * 101]}, "more than 100 letters"),
        ("causal", {**GROUPS, "groups": [str(i) for i in range(65)]}, "has 65 names, and 64"),
        ("causal", {**GROUPS, "parts": "groups"}, "did you mean|must be 'label' or 'group'"),
    ],
)
def test_parts_that_cannot_be_told_are_refused(task, evaluation, words):
    with pytest.raises(ConfigError, match=words):
        asked(task, evaluation)


def test_parts_whose_noise_leaves_no_room_are_refused_where_the_whole_alone_fits(monkeypatch):
    monkeypatch.setattr(EvaluationSums, "deviation", lambda self, norm: 6000 * norm)
    assert sum_shape(asked(evaluation={}), "evaluation", (), NAMES).length == 3
    with pytest.raises(ConfigError, match="leaves no room") as refused:
        sum_shape(asked(), "evaluation", (), NAMES)
    assert "evaluation.epsilon" in refused.value.remedy
    assert "evaluation.parts" in refused.value.remedy
