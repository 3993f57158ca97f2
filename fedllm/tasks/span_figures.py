"""Precision, recall and F1 from counts of spans that are right, predicted and there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def f_measures(right: float, predicted: float, gold: float) -> dict[str, float]:
    """Return precision, recall and F1; 0 where there is nothing to divide by."""
    return {
        "f1": _part(2 * right, predicted + gold),
        "precision": _part(right, predicted),
        "recall": _part(right, gold),
    }


def by_label(counts: NDArray[np.float64], labels: Sequence[str]) -> dict[str, float]:
    """Return F1 of each label of which there is a span, as ``f1_LABEL``.

    Parameters
    ----------
    counts : float64 array (3, L)
        Right, predicted and gold spans of each label.
    """
    return {
        f"f1_{label}": f_measures(*column)["f1"]
        for label, column in zip(labels, counts.T.tolist(), strict=True)
        if column[1] or column[2]
    }


def noised_f_measures(means: Mapping[str, float]) -> dict[str, float]:
    """Return what noised means of counts say, and about how far noise moves it.

    Parameters
    ----------
    means : mapping
        ``right_spans``, ``predicted_spans``, ``gold_spans`` and, as ``NAME_noise``, the standard
        deviation of each by noise.

    Returns
    -------
    dict
        ``f1``, ``precision`` and ``recall`` in [0, 1], and ``NAME_noise`` of each, to first order.
        Where noise leaves nothing to divide by, that figure is not there.
    """
    right, predicted, gold = (means[f"{name}_spans"] for name in ("right", "predicted", "gold"))
    of_right, of_predicted, of_gold = (
        means[f"{name}_spans_noise"] for name in ("right", "predicted", "gold")
    )
    parts = {
        "f1": ((predicted + gold) / 2, hypot(of_predicted, of_gold) / 2),
        "precision": (predicted, of_predicted),
        "recall": (gold, of_gold),
    }
    told: dict[str, float] = {}
    for name, (whole, of_whole) in parts.items():
        if whole > 0:
            told[name] = min(right / whole, 1.0)
            told[f"{name}_noise"] = hypot(of_right, told[name] * of_whole) / whole
    return told


def _part(value: float, whole: float) -> float:
    return value / whole if whole else 0.0
