"""Exact tests with a stated probability of a false alarm; no threshold here is tuned.

Each test returns None, or what is wrong. For right code it does the latter with probability
at most `ALARM`, from the exact distribution of its statistic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# The whole self-test makes no more than twenty thousand such tests: together 1e-10.
ALARM = 5e-15
# Of values that keep at least 22 bits, far fewer are equal by chance.
_MOST_EQUAL, _COMPARED = 0.05, 1 << 17


def alarm() -> float:
    """Return the probability with which one exact test fails on right code."""
    return ALARM


def binomial(count: int, trials: int, probability: float, what: str) -> str | None:
    """Test that ``count`` of ``trials`` independent events of ``probability`` came true."""
    tail = min(
        float(stats.binom.cdf(count, trials, probability)),
        float(stats.binom.sf(count - 1, trials, probability)),
    )
    if tail >= alarm() / 2:
        return None
    return f"{what}: {count} of {trials}, where about {trials * probability:.1f} are right"


def central_counts(counts: Sequence[int], trials: int, probability: float, what: str) -> str | None:
    """Test that independent binomial counts scatter as they must, neither more nor less.

    Counts how many lie within one standard deviation; that number is binomial itself.
    """
    mean, deviation = trials * probability, np.sqrt(trials * probability * (1 - probability))
    low, high = np.ceil(mean - deviation), np.floor(mean + deviation)
    central = stats.binom.cdf(high, trials, probability) - stats.binom.cdf(
        low - 1, trials, probability
    )
    inside = int(np.count_nonzero((np.asarray(counts) >= low) & (np.asarray(counts) <= high)))
    return binomial(inside, len(counts), float(central), what)


def variance(
    values: NDArray[np.float64], right: float, what: str, extra: float = 0.0, freedom: int = 0
) -> str | None:
    """Test that Gaussian values of mean 0 have the variance ``right``, up to ``extra`` more.

    Parameters
    ----------
    values : ndarray
        Independent, or projected onto a space of dimension ``freedom``.
    right : float
        The variance that they must have.
    extra : float
        Largest variance from rounding beside it.
    freedom : int
        Degrees of freedom; the number of values when left out.
    """
    freedom = freedom or len(values)
    square = float(np.square(values).sum())
    probability = alarm() / 2
    low = right * float(stats.chi2.ppf(probability, freedom))
    high = (right + extra) * float(stats.chi2.isf(probability, freedom))
    if low <= square <= high:
        return None
    found = float(np.sqrt(square / freedom / right))
    return f"{what}: {found:.3f} times the standard deviation that it must have"


def centred(values: NDArray[np.floating], proxy: float, what: str) -> str | None:
    """Test that independent sub-Gaussian values have mean 0.

    ``proxy`` bounds the variance of a Gaussian whose moment generating function is nowhere below
    theirs; their sum then exceeds ``t`` with probability at most ``exp(-t**2 / (2 n proxy))``.
    """
    total = float(np.sum(values))
    if abs(total) <= np.sqrt(2 * len(values) * proxy * np.log(2 / alarm())):
        return None
    return f"{what}: the mean is {total / len(values):.3g} and not 0"


def normal_shape(values: NDArray[np.float64], what: str) -> str | None:
    """Test that independent values are standard normal.

    By the distance of Kolmogorov and Smirnov and its bound (Massart 1990).
    """
    distance = float(stats.kstest(values, "norm").statistic)
    if distance <= float(np.sqrt(np.log(2 / alarm()) / (2 * len(values)))):
        return None
    return f"{what}: the distribution is not normal (distance {distance:.3f})"


def tails(
    values: NDArray[np.float64], what: str, ends: Sequence[float] = (2, 3, 3.5, 4, 4.5, 5)
) -> str | None:
    """Test that standard normal values go beyond each end as often as they must."""
    sizes = np.abs(values)
    return first(*(tail(int((sizes > end).sum()), sizes.size, end, what) for end in ends))


def tail(beyond: int, count: int, end: float, what: str) -> str | None:
    """Test how many of ``count`` standard normal values lie beyond ``end`` on either side."""
    outside = 2 * float(stats.norm.sf(end))
    return binomial(beyond, count, outside, f"{what}: beyond {end:g} deviations")


def fine(values: NDArray[np.floating], what: str) -> str | None:
    """Test that values of a smooth distribution are not drawn from a coarse grid.

    With 22 bits and more, fewer than one in a hundred equals another by chance; with the 11
    bits of half precision, or where few numbers serve again and again, nearly all do.
    """
    taken = np.ravel(values)[:_COMPARED]
    equal = len(taken) - len(np.unique(taken))
    if equal <= max(10.0, _MOST_EQUAL * len(taken)):
        return None
    return f"{what}: {equal} of {len(taken)} values equal another one: too coarse, or repeated"


def unrelated(vectors: Sequence[NDArray[np.float64]], freedom: int, what: str) -> str | None:
    """Test that isotropic Gaussian vectors point in independent directions.

    The squared cosine of two of them is Beta(1/2, (freedom - 1) / 2).
    """
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i)]
    limit = float(stats.beta.isf(alarm() / max(1, len(pairs)), 0.5, (freedom - 1) / 2))
    for i, j in pairs:
        norms = float(np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j]))
        if norms == 0.0:
            return f"{what}: nothing was drawn"
        cosine = float(vectors[i] @ vectors[j]) / norms
        if cosine**2 > limit:
            return f"{what}: draws {j + 1} and {i + 1} have a correlation of {cosine:.3f}"
    return None


def uniform(values: NDArray[np.integer], bound: int, what: str, bins: int = 16) -> str | None:
    """Test that integers are uniform on [0, bound): the count of each of a few equal bins."""
    places = (np.asarray(values).astype(np.float64) * (bins / bound)).astype(np.int64)
    counts = np.bincount(np.clip(places, 0, bins - 1), minlength=bins)
    least = alarm() / (2 * bins)
    for count in counts:
        tail = min(
            float(stats.binom.cdf(count, len(values), 1 / bins)),
            float(stats.binom.sf(count - 1, len(values), 1 / bins)),
        )
        if tail < least:
            return f"{what}: the values are not uniform"
    return None


def first(*problems: str | None) -> str | None:
    """Return the first problem, none if there is none."""
    return next((problem for problem in problems if problem), None)
