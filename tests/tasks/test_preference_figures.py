"""Accuracy of pairs, its interval over events, and the rules beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.tasks import everything, record

from fedllm.config import PreferenceSection
from fedllm.data.rankings import Ranking
from fedllm.tasks import preference_encoding
from fedllm.tasks.preference import Preference
from fedllm.tasks.preference_figures import REPLICATES, figures_of, replicates, sums_of

EVENTS = [
    Ranking("flu and fever", "", ("flu fever", "rest at home today"), ((0, 1),)),
    Ranking("cough", "ward", ("a cough", "no", "a long cough at night"), ((2, 0), (0, 1), (2, 1))),
    Ranking("pain", "", ("yes", "no"), ()),
]


def dataset_of(plain, objective="dpo", events=EVENTS):
    task = Preference(PreferenceSection(objective=objective))
    rows = [record(f"a:{i}", **one.written()) for i, one in enumerate(events)]
    return task.encode(rows, plain, 120)


def summed(batch, margins):
    pairs = batch["pairs"].numpy()
    records = np.nonzero(pairs[:, :, 0] >= 0)[0]
    margins = np.asarray(margins, dtype=float)
    return sums_of(batch, margins, np.log1p(np.exp(-margins)), records)


@pytest.mark.parametrize("objective", ["dpo", "selector"])
def test_shares_are_counted_by_pair(objective, plain):
    batch = everything(dataset_of(plain, objective))
    found = figures_of(summed(batch, [1.0, -2.0, 0.0, 3.0]), 3)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["loss"] == pytest.approx(np.mean(np.log1p(np.exp([-1.0, 2.0, 0.0, -3.0]))))
    assert (found["pairs"], found["records"]) == (4.0, 3.0)
    # Of the first pair the answer with fewer tokens is preferred, of the others that with more.
    assert found["longer_accuracy"] == pytest.approx(3 / 4)
    assert 0 <= found["overlap_accuracy"] <= 1
    assert 0 <= found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] <= 1


def test_overlap_is_the_part_of_the_answers_tokens_that_stand_in_the_prompt(plain):
    one = Ranking("flu fever", "", ("flu fever", "zzz qqq"), ((0, 1), (1, 0), (0, 1)))
    found = figures_of(summed(everything(dataset_of(plain, events=[one])), [1, 1, 1]), 1)
    assert found["overlap_accuracy"] == pytest.approx(2 / 3)


def test_events_count_alike_wherever_they_stand(plain):
    dataset = dataset_of(plain)
    whole = summed(everything(dataset), [1.0, -2.0, 0.0, 3.0])
    apart = sum(
        summed(dataset.batch(np.array([row])), margins)
        for row, margins in ((2, []), (1, [-2.0, 0.0, 3.0]), (0, [1.0]))
    )
    np.testing.assert_allclose(apart, whole)


def test_the_interval_is_that_of_events_and_not_of_pairs(plain):
    """Where all pairs of an event are right or wrong together, pairs say no more than events."""
    random = np.random.default_rng(0)
    answers = tuple(f"answer {k}" for k in range(4))
    pairs = tuple((i, j) for i in range(4) for j in range(i + 1, 4))
    events = [Ranking(f"question {k}", "", answers, pairs) for k in range(150)]
    batch = everything(dataset_of(plain, events=events))
    right = random.random(150) < 0.7
    sums = summed(batch, np.repeat(np.where(right, 1.0, -1.0), 6))
    found = figures_of(sums, 150)
    deviation = float(np.std(replicates(sums)))
    share = right.mean()
    assert deviation == pytest.approx(np.sqrt(share * (1 - share) / 150), rel=0.15)
    assert found["accuracy_high"] - found["accuracy_low"] == pytest.approx(
        3.92 * deviation, rel=0.2
    )
    assert len(replicates(sums)) == REPLICATES


@pytest.mark.parametrize(
    ("margins", "low", "high"),
    [
        ([1.0] * 4, 0.05**0.25, 1.0),
        ([-1.0] * 4, 0.0, 1 - 0.05**0.25),
        ([0.0] * 4, 0.5 * 0.05**0.25, 1 - 0.5 * 0.05**0.25),
    ],
)
def test_events_that_all_say_the_same_leave_room_for_others(plain, margins, low, high):
    """Of an event without a pair nothing is known: it makes the interval no narrower."""
    events = [Ranking(f"question {k}", "", ("yes", "no"), ((0, 1),)) for k in range(4)]
    events.append(Ranking("pain", "", ("yes", "no"), ()))
    found = figures_of(summed(everything(dataset_of(plain, events=events)), margins), 5)
    assert found["accuracy_low"] == pytest.approx(low)
    assert found["accuracy_high"] == pytest.approx(high)


def test_figures_are_numbers_that_a_summary_can_hold(plain):
    found = figures_of(summed(everything(dataset_of(plain)), [1.0, -2.0, 0.0, 3.0]), 3)
    assert json.loads(json.dumps(found)) == found


def test_parts_of_a_pair_that_is_too_long_give_way_by_length():
    shares = preference_encoding._shares
    assert shares([3, 4, 5], 20) == [3, 4, 5]
    assert shares([30, 4, 5], 20) == [11, 4, 5]
    # What is left over is the prompt's: of the two answers none is shown at greater length.
    assert shares([30, 30, 30], 20) == [8, 6, 6]
    assert shares([6, 30, 30], 19) == [6, 6, 6]
    assert shares([100, 1, 50], 21) == [10, 1, 10]
