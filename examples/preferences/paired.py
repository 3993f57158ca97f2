"""Which pairs of answers models get right, and how far two models differ on the same pairs.

Intervals are 95%, by a bootstrap over ranking events: all pairs of one prompt come again or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedllm.data.rankings import Ranking
from fedllm.randomness import RandomStream

Values = NDArray[np.float64]
SEED, REPLICATES = 15, 2000
# Of both ends of the interval, together.
OUTSIDE = 0.05
# What is found with a probability of 80% at a level of 5%, two-sided, in standard errors.
POWER_SE = 2.8


@dataclass(frozen=True)
class Right:
    """How many pairs of each event a model gets right, and how many it has; (E,) each."""

    hits: Values
    pairs: Values

    def written(self) -> dict[str, list[float]]:
        """Return it as JSON has it."""
        return {"hits": self.hits.tolist(), "pairs": self.pairs.tolist()}

    @classmethod
    def read(cls, values: Mapping[str, Sequence[float]]) -> Right:
        """Return what `written` gave."""
        return cls(np.array(values["hits"]), np.array(values["pairs"]))


@dataclass(frozen=True)
class Share:
    """A share of pairs, or a difference of two, with its interval and standard error."""

    mean: float
    low: float
    high: float
    error: float

    @property
    def points(self) -> str:
        """In percent points, with a sign."""
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"

    @property
    def words(self) -> str:
        """As a share."""
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"

    @property
    def detectable(self) -> float:
        """Which true difference is found with a probability of 80%."""
        return POWER_SE * self.error


def accuracy(one: Right) -> Share:
    """Return how many of all pairs a model gets right."""
    return difference(one, Right(np.zeros_like(one.hits), one.pairs))


def difference(one: Right, other: Right) -> Share:
    """Return how many more of the same pairs the first model gets right."""
    if not np.array_equal(one.pairs, other.pairs):
        raise SystemExit("these are not the same pairs: give both models the same test file")
    more, drawn = one.hits - other.hits, RandomStream.seeded(SEED, "events")
    events = len(more)
    places = drawn.below(events, REPLICATES * events).reshape(REPLICATES, events)
    found = more[places].sum(1) / one.pairs[places].sum(1)
    low, high = np.quantile(found, (OUTSIDE / 2, 1 - OUTSIDE / 2))
    mean = more.sum() / one.pairs.sum()
    return Share(float(mean), float(low), float(high), float(found.std()))


def by_scores(rankings: Sequence[Ranking], scores: Callable[[Ranking], Sequence[float]]) -> Right:
    """Return what a rule gets right that gives each answer of an event a number."""
    hits = []
    for ranking in rankings:
        found = scores(ranking)
        gaps = np.array([found[better] - found[worse] for better, worse in ranking.pairs])
        hits.append(float(((1 + np.sign(gaps)) / 2).sum()))
    return Right(np.array(hits), np.array([float(len(one.pairs)) for one in rankings]))
