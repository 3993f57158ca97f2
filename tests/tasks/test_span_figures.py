from __future__ import annotations

import numpy as np
import pytest

from fedllm.tasks.span_figures import by_label, f_measures, noised_f_measures

EXACT = {"right_spans_noise": 0.0, "predicted_spans_noise": 0.0, "gold_spans_noise": 0.0}


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    told = f_measures(3.0, 4.0, 10.0)
    precision, recall = 3 / 4, 3 / 10
    harmonic = 2 / (1 / precision + 1 / recall)
    assert told == {"f1": pytest.approx(harmonic), "precision": precision, "recall": recall}
    assert set(f_measures(0.0, 0.0, 0.0).values()) == {0.0}


def test_a_label_of_which_there_is_no_span_has_no_figure():
    counts = np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    assert by_label(counts, ("a", "b", "c")) == {"f1_a": 0.5, "f1_c": 0.0}


def test_noised_counts_give_the_same_figures_and_how_far_they_move():
    means = {"right_spans": 0.3, "predicted_spans": 0.4, "gold_spans": 1.0}
    told = noised_f_measures(means | EXACT)
    assert {name: told[name] for name in ("f1", "precision", "recall")} == pytest.approx(
        f_measures(0.3, 0.4, 1.0)
    )
    assert told["f1_noise"] == told["precision_noise"] == told["recall_noise"] == 0.0
    # Against draws.
    noise = {name: 0.01 for name in EXACT}
    told = noised_f_measures(means | noise)
    draws = np.random.default_rng(0).normal([0.3, 0.4, 1.0], 0.01, (20_000, 3))
    right, predicted, gold = draws.T
    for name, values in {
        "f1": 2 * right / (predicted + gold),
        "precision": right / predicted,
        "recall": right / gold,
    }.items():
        assert told[f"{name}_noise"] == pytest.approx(values.std(), rel=0.05)


def test_no_figure_is_made_of_what_noise_has_eaten():
    means = {"right_spans": 0.3, "predicted_spans": 0.0, "gold_spans": 0.2}
    told = noised_f_measures(means | EXACT)
    assert set(told) == {"f1", "f1_noise", "recall", "recall_noise"}
    assert told["f1"] == told["recall"] == 1.0
