from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.tasks.scores import ACCURACY, LOSS, LOSS_LIMIT_NATS, Score, entries, means, unit_vectors

anything = st.floats() | st.sampled_from([float("nan"), float("inf"), -float("inf")])


@given(st.lists(st.tuples(anything, anything), max_size=9))
def test_every_entry_is_bounded_whatever_a_score_is(rows):
    values = np.array(rows, dtype=np.float64).reshape(-1, 2)
    vectors = unit_vectors((LOSS, ACCURACY), values)
    assert vectors.shape == (len(rows), 3) == (len(rows), entries((LOSS, ACCURACY)))
    assert ((vectors >= 0) & (vectors <= 1)).all()
    assert (vectors[:, 0] == 1).all()


def test_what_is_no_number_counts_as_the_worst():
    nan = float("nan")
    assert unit_vectors((LOSS, ACCURACY), np.array([[nan, nan]])).tolist() == [[1.0, 1.0, 0.0]]
    values = np.array([[np.inf, -np.inf], [LOSS_LIMIT_NATS / 4, 0.5]])
    assert unit_vectors((LOSS, ACCURACY), values).tolist() == [[1.0, 1.0, 0.0], [1.0, 0.25, 0.5]]


@given(st.lists(st.tuples(st.floats(0, 8), st.floats(0, 1)), min_size=1, max_size=9))
def test_sums_say_the_means(rows):
    total = unit_vectors((LOSS, ACCURACY), np.array(rows)).sum(axis=0)
    told = means((LOSS, ACCURACY), total, 0.0)
    assert list(told) == ["units", "loss", "loss_noise", "accuracy", "accuracy_noise"]
    assert told["units"] == len(rows)
    assert (told["loss"], told["accuracy"]) == pytest.approx(tuple(np.mean(rows, axis=0)))
    assert told["loss_noise"] == told["accuracy_noise"] == 0.0


def test_noise_is_told_in_the_scores_own_unit_and_nothing_without_units():
    half = Score("half", 2.0, 0.0)
    told = means((half,), np.array([10.0, 6.0]), 0.5)
    assert told == {
        "units": 10.0,
        "half": pytest.approx(1.2),
        "half_noise": pytest.approx(0.05 * np.sqrt(1 + 0.6**2) * 2),
    }
    assert means((half,), np.array([0.9, 6.0]), 0.5) == {}
    assert means((half,), np.array([10.0, 99.0]), 0.0)["half"] == 2.0
    assert means((half,), np.array([10.0, -1.0]), 0.0)["half"] == 0.0
