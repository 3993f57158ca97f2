"""How far raters agree: Krippendorff's alpha on pairs of answers, and who differs where.

A unit, in Krippendorff's words, is a pair of answers to one prompt; a rater's value is that the
first one is better, that both are equal, or that the second one is. Each pair counts in both
directions, so that nothing hangs on which answer is called the first. The values are then as often
"first" as "second", and the ordinal metric says: the opposite is twice as far as a tie. For two
raters without ties alpha is, up to Krippendorff's correction for few values, their mean Kendall
tau: 1 where all agree, 0 where they agree as by chance, below 0 where they contradict each other.

K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), and "Content Analysis: An
Introduction to Its Methodology", 4th edition (2018), chapter 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fedllm.randomness import RandomStream
from fedllm.rating.export import Group, aligned, groups
from fedllm.rating.store import Rating

Matrix = NDArray[np.float64]
# From how often each value was given, (..., V), to squared distances (..., V, V).
Metric = Callable[[Matrix], Matrix]
# What a rater may say of a pair: the first is better, both are equal, the second is.
_VALUES = 3
_RESAMPLES, _AT_ONCE, _SEED = 2000, 100, 0


def coincidences(units: Iterable[Sequence[int]], values: int) -> Matrix:
    """Count pairs of values that raters gave the same unit, as Krippendorff does.

    Parameters
    ----------
    units : iterable of sequences of int
        Of each unit the values that its raters gave, from 0; units with fewer than two say nothing.
    values : int
        How many different ones there are.

    Returns
    -------
    float64 array (V, V)
        Symmetric; its sum is how many values could be paired.
    """
    found = np.zeros((values, values))
    for unit in units:
        if len(unit) > 1:
            counts = np.bincount(np.asarray(unit), minlength=values).astype(np.float64)
            found += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return found


def ordinal(totals: Matrix) -> Matrix:
    """Return squared distances between ranks: how many values lie between two, ends by half."""
    upto = np.cumsum(totals, axis=-1) - totals / 2
    return np.asarray((upto[..., :, None] - upto[..., None, :]) ** 2)


def alphas(found: Matrix, metric: Metric = ordinal) -> Matrix:
    """Return Krippendorff's alpha of each of several coincidences (..., V, V).

    NaN where all values are the same, so that there is nothing to agree on.
    """
    totals = found.sum(axis=-1)
    distances, both = metric(totals), (-2, -1)
    by_chance = (totals[..., :, None] * totals[..., None, :] * distances).sum(both)
    expected = by_chance / np.maximum(totals.sum(axis=-1) - 1, 1)
    observed = (found * distances).sum(both)
    whole = np.where(expected > 0, expected, np.nan)
    return np.asarray(1 - observed / whole)


def alpha(found: Matrix, metric: Metric = ordinal) -> float | None:
    """Return Krippendorff's alpha of coincidences (V, V); None where all values are the same."""
    value = float(alphas(found, metric))
    return None if np.isnan(value) else value


@dataclass(frozen=True)
class Disputed:
    """One prompt, and how far its raters differ.

    Attributes
    ----------
    group : list of Rating
        What they said.
    disagreement : float
        Mean over pairs of raters and pairs of answers: 0 the same, 1/4 a tie and a preference, 1
        the opposite.
    """

    group: Group
    disagreement: float


@dataclass(frozen=True)
class Rater:
    """What one rater did.

    Attributes
    ----------
    ranked, skipped : int
        Prompts.
    ties : float or None
        Share of pairs of answers that are told equal; None where nothing was ranked.
    disagreement : float or None
        With the others, as of `Disputed`; None where they share no prompt.
    first_best : float or None
        Share of rankings in which the answer that was shown first is the best (tied bests by their
        share); far above ``by_chance`` a rater may not read on.
    by_chance : float or None
        What it would be if the place on the screen did not matter.
    """

    name: str
    ranked: int
    skipped: int
    ties: float | None
    disagreement: float | None
    first_best: float | None
    by_chance: float | None


@dataclass(frozen=True)
class Agreement:
    """What several raters said, side by side.

    Attributes
    ----------
    alpha : float or None
        Krippendorff's; None where no two raters ranked the same answers, or nobody told two apart.
    interval : (float, float) or None
        95%, by the percentiles of a bootstrap over prompts; None with fewer than two.
    shared : int
        Prompts that at least two raters ranked.
    raters : list of Rater
        By name.
    disputed : list of Disputed
        Those prompts, the largest disagreement first.
    """

    alpha: float | None
    interval: tuple[float, float] | None
    shared: int
    raters: list[Rater]
    disputed: list[Disputed]


def agreement(ratings: Sequence[Rating]) -> Agreement:
    """Compare what raters said.

    Parameters
    ----------
    ratings : sequence of Rating
        What counts; see `fedllm.rating.store.latest`.
    """
    shared = [group for group in groups(ratings) if len(group) > 1]
    tables = [_both_ways(group) for group in shared]
    disputed = [
        Disputed(group, _disagreement(table)) for group, table in zip(shared, tables, strict=True)
    ]
    names = sorted({rating.rater for rating in ratings})
    return Agreement(
        alpha(sum(tables, np.zeros((_VALUES, _VALUES)))),
        _interval(tables),
        len(shared),
        [_rater(name, ratings, shared) for name in names],
        sorted(disputed, key=lambda one: -one.disagreement),
    )


def pair_values(ranks: Sequence[int]) -> list[int]:
    """Return what a ranking says of each pair: 0 the first is better, 1 a tie, 2 the second is."""
    return [int(np.sign(a - b)) + 1 for a, b in combinations(ranks, 2)]


def _both_ways(group: Group) -> Matrix:
    pairs = zip(*map(pair_values, aligned(group)), strict=True)
    found = coincidences(pairs, _VALUES)
    return found + found[::-1, ::-1]


def _disagreement(table: Matrix) -> float:
    places = np.arange(_VALUES) / (_VALUES - 1)
    distances = (places[:, None] - places[None, :]) ** 2
    return float((table * distances).sum() / table.sum())


def _interval(tables: Sequence[Matrix]) -> tuple[float, float] | None:
    count = len(tables)
    if count < 2:
        return None
    stream = RandomStream.seeded(_SEED, "bootstrap")
    flat, found = np.stack(tables).reshape(count, -1), []
    for _ in range(_RESAMPLES // _AT_ONCE):
        drawn = stream.below(count, _AT_ONCE * count).astype(np.int64).reshape(_AT_ONCE, count)
        places = drawn + count * np.arange(_AT_ONCE)[:, None]
        times = np.bincount(places.ravel(), minlength=_AT_ONCE * count).reshape(_AT_ONCE, count)
        found.append(alphas((times @ flat).reshape(_AT_ONCE, _VALUES, _VALUES)))
    known = np.concatenate(found)
    known = known[~np.isnan(known)]
    if not known.size:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _rater(name: str, ratings: Sequence[Rating], shared: Sequence[Group]) -> Rater:
    mine = [rating for rating in ratings if rating.rater == name]
    ranked = [rating for rating in mine if rating.state == "ranked"]
    pairs = [value for rating in ranked for value in pair_values(rating.ranks)]
    with_others = [
        _disagreement(_both_ways([*own, other]))
        for group in shared
        if (own := [one for one in group if one.rater == name])
        for other in group
        if other.rater != name
    ]
    return Rater(
        name,
        len(ranked),
        len(mine) - len(ranked),
        _mean([value == 1 for value in pairs]),
        _mean(with_others),
        _mean([_first_is_best(rating) for rating in ranked]),
        _mean([1 / len(rating.answers) for rating in ranked]),
    )


def _first_is_best(rating: Rating) -> float:
    return (rating.ranks[rating.shown[0]] == 1) / rating.ranks.count(1)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
