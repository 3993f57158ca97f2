"""Bounded scores of held-out units: what one unit may add to a sum, and what the sum says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Losses above are counted as this much; most tokens and labels stay well below.
LOSS_LIMIT_NATS = 8.0


@dataclass(frozen=True, slots=True)
class Score:
    """A value of a unit that sites sum up, as a part of its limit.

    Attributes
    ----------
    name : str
        Of the figure that the sum gives.
    limit : float
        Values are clipped to [0, ``limit``].
    worst : float
        What a value that is no number counts as, or it would spoil the sum.
    """

    name: str
    limit: float
    worst: float


LOSS = Score("loss", LOSS_LIMIT_NATS, LOSS_LIMIT_NATS)
ACCURACY = Score("accuracy", 1.0, 0.0)


def entries(scores: Sequence[Score]) -> int:
    """Return the length of a unit's vector: a one, and its scores."""
    return 1 + len(scores)


def unit_vectors(scores: Sequence[Score], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each unit's vector, (U, 1 + S), every entry in [0, 1].

    Parameters
    ----------
    values : float64 array (U, S)
        What each unit's records scored on average; U may be 0.
    """
    import numpy as np

    rows = np.ones((len(values), entries(scores)))
    for place, score in enumerate(scores):
        found = np.nan_to_num(values[:, place] / score.limit, nan=score.worst / score.limit)
        rows[:, 1 + place] = np.clip(found, 0.0, 1.0)
    return rows


def means(
    scores: Sequence[Score], total: NDArray[np.float64], deviation: float
) -> dict[str, float]:
    """Return the means that a sum of `unit_vectors` says, and how far noise moves them.

    Parameters
    ----------
    total : float64 array (1 + S,)
        With noise.
    deviation : float
        Standard deviation of the noise in each entry.

    Returns
    -------
    dict
        ``units``, and for each score its mean and, as ``NAME_noise``, the standard deviation
        that the noise alone gives it. Empty where the noise leaves no positive number of units.
    """
    units = float(total[0])
    if units < 1:
        return {}
    figures, spread = {"units": units}, deviation / units
    for score, value in zip(scores, total[1:], strict=True):
        share = min(max(float(value) / units, 0.0), 1.0)
        figures[score.name] = share * score.limit
        figures[f"{score.name}_noise"] = spread * sqrt(1 + share**2) * score.limit
    return figures
