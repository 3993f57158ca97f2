"""Bounded scores of held-out units: what one unit may add to a sum, and what the sum says.

A unit adds (1, scores), every entry in [0, 1]: its block of the whole. Where quality is told by
part (a label, or a group), a block for each part follows, which has the same of the unit's records
in that part, times their share of its records. Shares add up to 1 at most, so the blocks of all
parts together are no longer than one block can be, however many parts there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Losses above are counted as this much; most tokens and labels stay well below.
LOSS_LIMIT_NATS = 8.0
# A part's figure is told where its noise is no more than this much of the largest that it can be.
LARGEST_SPREAD = 0.1


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


@dataclass(frozen=True)
class UnitScores:
    """What a site's held-out units score, not yet bounded.

    Attributes
    ----------
    values : float64 array (U, S)
        For each unit the mean of its records' scores; U may be 0.
    owners : int64 array (C,)
        For each unit and part that it has records in, one after the other: the unit.
    parts : int64 array (C,)
        And the part.
    shares : float64 array (C,)
        And how many of the unit's records are in it, over all that it has.
    in_parts : float64 array (C, S)
        And the mean of their scores.
    """

    values: NDArray[np.float64]
    owners: NDArray[np.int64]
    parts: NDArray[np.int64]
    shares: NDArray[np.float64]
    in_parts: NDArray[np.float64]

    @classmethod
    def of_records(
        cls,
        values: NDArray[np.float64],
        units: NDArray[np.int64],
        parts: NDArray[np.int64] | None = None,
    ) -> UnitScores:
        """Put records together.

        Parameters
        ----------
        values : float64 array (N, S)
            Of each record.
        units : int64 array (N,)
            Whose it is.
        parts : int64 array (N,), optional
            Which part it is in; -1 for none of those that are told.
        """
        import numpy as np

        # A unit without records adds nothing to a sum, not even itself.
        _, owners, counts = np.unique(units, return_inverse=True, return_counts=True)
        known = np.zeros(len(units), dtype=bool) if parts is None else np.asarray(parts) >= 0
        pairs = np.stack([owners, np.full(len(units), -1) if parts is None else parts], axis=1)
        cells, places, sizes = np.unique(
            pairs[known], axis=0, return_inverse=True, return_counts=True
        )
        return cls(
            _means(values, owners, counts),
            cells[:, 0],
            cells[:, 1],
            sizes / counts[cells[:, 0]],
            _means(values[known], places.reshape(-1), sizes),
        )


def _means(
    values: NDArray[np.float64], places: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean of the rows that go to each place, (len(counts), S)."""
    import numpy as np

    sums = [np.bincount(places, weights=column, minlength=len(counts)) for column in values.T]
    return np.stack(sums, axis=1) / counts[:, None]


def entries(scores: Sequence[Score]) -> int:
    """Return the length of a block: a one, and its scores."""
    return 1 + len(scores)


def longest(scores: Sequence[Score], parts: int) -> float:
    """Return the largest L2 norm of what a unit adds: a block, and one more where parts are told.

    Entries of a block are in [0, 1]. The blocks of all parts together are no longer than one: a
    record fills one of them, and a person's are weighted by shares that add up to 1 at most. So it
    does not grow with the number of parts.
    """
    return sqrt(entries(scores) * (2 if parts else 1))


def vectors(
    scores: Sequence[Score], found: UnitScores, parts: int
) -> Iterator[NDArray[np.float64]]:
    """Yield what each unit adds, ((1 + parts) * (1 + S),): the whole, and each part's block."""
    import numpy as np

    whole, inside = (unit_vectors(scores, v) for v in (found.values, found.in_parts))
    inside *= found.shares[:, None]
    ends = np.asarray(np.searchsorted(found.owners, np.arange(len(whole)), side="right"))
    start = 0
    for row, end in zip(whole, ends, strict=True):
        blocks = np.zeros((1 + parts, entries(scores)))
        blocks[0] = row
        blocks[1 + found.parts[start:end]] = inside[start:end]
        start = end
        yield blocks.ravel()


def unit_vectors(scores: Sequence[Score], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each unit's block of the whole, (U, 1 + S), every entry in [0, 1].

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
    """Return the means that a sum of blocks says, and how far noise moves them.

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


def told(scores: Sequence[Score], figures: dict[str, float]) -> dict[str, float]:
    """Return those of a part's figures that the noise leaves something of, or nothing.

    Parameters
    ----------
    figures : dict
        `means` of the part, and what its task makes of them, which is at most 1.
    """
    limits = {score.name: score.limit for score in scores}
    kept: dict[str, float] = {}
    for name, value in figures.items():
        spread = figures.get(f"{name}_noise")
        if spread is not None and spread <= LARGEST_SPREAD * limits.get(name, 1.0):
            kept |= {name: value, f"{name}_noise": spread}
    return {"units": figures["units"], **kept} if kept else {}
