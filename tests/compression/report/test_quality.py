"""Measures by hand, and intervals that hold what they should."""

from __future__ import annotations

import numpy as np
import pytest

from fedllm.compression.report.quality import (
    MACRO_F1,
    Judged,
    differences,
    quality,
    same_answers,
)


class Labelled:
    task, labels, preference = "classification", ("a", "b", "c"), None


class Writes:
    task, labels, preference = "causal", (), None


def judged(gold, given):
    gold, given = np.array(gold), np.array(given)
    right = (gold == given).astype(float)
    sums = np.stack([1 - right, right, np.ones(len(gold))], axis=1)
    return Judged(sums, given.tolist(), (gold, given))


def test_macro_f1_is_the_mean_over_labels_that_occur():
    found = quality(Labelled, judged([0, 0, 0, 1], [0, 0, 1, 1]))
    assert list(found) == ["accuracy", "loss", MACRO_F1]
    # F1 of a: 2 * 2 / (3 + 2); of b: 2 * 1 / (1 + 2); c does not occur.
    assert found[MACRO_F1] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["accuracy"] == 0.75
    # A label that is given and never right drags others down, and counts for nothing itself.
    assert quality(Labelled, judged([0, 0], [0, 2]))[MACRO_F1] == pytest.approx(2 / 3)


def test_differences_are_paired():
    """Hard records are hard for both: that both fail at a half makes no interval wider."""
    gold = [0] * 200
    one = [0, 1] * 100
    two = list(one)
    two[0] = 1
    found = differences(Labelled, judged(gold, two), judged(gold, one))["accuracy"]
    assert found.value == pytest.approx(-1 / 200)
    assert (found.low, found.high) == (pytest.approx(-0.015), 0)
    same = differences(Labelled, judged(gold, one), judged(gold, one))["accuracy"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_an_interval_is_that_of_the_mean():
    generator = np.random.default_rng(0)
    gold = np.zeros(400, dtype=int)
    one, two = ((generator.random(400) < share).astype(int) for share in (0.3, 0.5))
    found = differences(Labelled, judged(gold, two), judged(gold, one))["accuracy"]
    apart = (one - two).astype(float)
    reach = 1.96 * apart.std() / 20
    assert found.value == pytest.approx(apart.mean())
    assert found.high - found.value == pytest.approx(reach, rel=0.15)
    assert found.value - found.low == pytest.approx(reach, rel=0.15)


def test_long_records_count_as_many_tokens():
    one = Judged(np.array([[10.0, 10], [1.0, 1]]), [1, 2], None)
    two = Judged(np.array([[30.0, 10], [1.0, 1]]), [1, 3], None)
    assert quality(Writes, two) == {"loss": pytest.approx(31 / 11)}
    found = differences(Writes, two, one)["loss"]
    assert found.value == pytest.approx(20 / 11)
    assert found.low == 0
    assert found.high == pytest.approx(2)
    assert same_answers(two, one) == 0.5
