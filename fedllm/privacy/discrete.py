"""Integer noise that survives quantisation exactly: the distributed discrete Gaussian.

Each site rounds its sum of clipped gradients to a grid, adds discrete Gaussian noise (Canonne,
Kamath, Steinke 2020) and sends integers; sums of integers are exact, so the opened sum carries
exactly the noise that is accounted (Kairouz, Liu, Steinke 2021). Nothing that privacy rests on
is a floating-point number, so there are no low bits to attack (Mironov 2012).

Why the cost is that of the continuous Gaussian, with slightly less noise:

1. **Rounding.** With the same random bits, two neighbours' rounded sums differ by an integer
   vector D whose coordinates are independent, each one of the two integers beside the real
   difference and right on average. So ``|D| <= c + sqrt(P)`` always, and by Hoeffding's
   inequality on the squares of the coordinates, with probability at least 1 - b,
   ``|D|**2 <= c**2 + P/4 + sqrt(2 ln(1/b)) (c + sqrt(P)/2)``, for clipping norm c in grid
   steps and P values.
2. **Sum.** n shares of variance s**2 are within ``10 n exp(-pi**2 s**2)`` of one discrete
   Gaussian of variance n s**2, in max divergence for each value (Kairouz, Liu, Steinke 2021).
3. **Discrete to continuous.** Adding N(0, v - t**2) to an integer and drawing a discrete
   Gaussian of variance t**2 around the result gives the discrete Gaussian of variance v, up
   to a factor within ``1 +- 5 exp(-2 pi**2 t**2)`` for each value, by Poisson summation (as in
   Peikert 2010, "An efficient and parallel Gaussian sampler for lattices"). That is the
   Gaussian mechanism and something done to its output, so every bound for the Gaussian
   holds, sampling and composition included.

With t = 2 and shares of at least 4 steps the factors of all values of a step are below 1e-20;
they and b are charged, see `fold`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedllm.randomness import RandomStream

SMALLEST_SHARE = 4
LARGEST_SHARE = 1 << 26
# Variance that the step from discrete to continuous gives away.
SMOOTHING_VARIANCE = 4.0
# Probability of each step that rounding moves the sum further than `sensitivity` says.
ROUNDING_FAILURE = 1e-18
# Below 10 n exp(-pi**2 s**2) + 5 exp(-2 pi**2 t**2) for n <= 16,384, s >= 4, t = 2.
DIVERGENCE_PER_VALUE = 1e-33
# A share beyond so many deviations has probability below 2 exp(-128) = 6e-56. Sums that would
# not fit are never sent; that costs this much delta times 1 + exp(epsilon), epsilon up to 50.
TAIL_DEVIATIONS = 16
TAIL_PROBABILITY = 1e-33


def sensitivity(clipping_steps: float, length: int) -> float:
    """Return how far one unit moves the rounded sum, in grid steps (L2).

    Fails with probability `ROUNDING_FAILURE`, which is charged.

    Parameters
    ----------
    clipping_steps : float
        Clipping norm in grid steps.
    length : int
        Values of the vector, P.
    """
    # Sums in float64 may be off by their own rounding, far below this allowance.
    c = clipping_steps * (1 + 1e-9)
    always = c + math.sqrt(length)
    tail = math.sqrt(2 * math.log(1 / ROUNDING_FAILURE))
    likely = math.sqrt(c * c + length / 4 + tail * (c + math.sqrt(length) / 2))
    return min(always, likely)


def share_deviation(
    noise_multiplier: float, shares: int, clipping_steps: float, length: int
) -> int:
    """Return the standard deviation of one share, in grid steps, rounded up.

    ``shares`` of them hide one unit's contribution as well as the continuous Gaussian of
    ``noise_multiplier`` hides it.
    """
    needed = (noise_multiplier * sensitivity(clipping_steps, length)) ** 2 + SMOOTHING_VARIANCE
    return max(SMALLEST_SHARE, math.ceil(math.sqrt(needed / shares) * (1 + 1e-12)))


def worth(deviation: int, shares: int, clipping_steps: float, length: int) -> float:
    """Return the noise multiplier that ``shares`` of a deviation are worth, rounded down."""
    variance = max(0.0, shares * float(deviation) ** 2 - SMOOTHING_VARIANCE)
    return math.sqrt(variance) / sensitivity(clipping_steps, length) * (1 - 1e-9)


def round_at_random(values: NDArray[np.float64], stream: RandomStream) -> NDArray[np.int64]:
    """Round each value (P,) up or down at random, right on average."""
    lower = np.floor(values)
    up = stream.uniform(len(values)) < values - lower
    return lower.astype(np.int64) + up


def discrete_gaussian(stream: RandomStream, count: int, deviation: int) -> NDArray[np.int64]:
    """Draw ``count`` integers with probability proportional to ``exp(-x**2 / (2 deviation**2))``.

    Exact: integers and comparisons only (Canonne, Kamath, Steinke 2020, algorithms 1 to 3), as
    far as the stream's bits are random. The time depends on the values drawn.

    Parameters
    ----------
    stream : RandomStream
        ``RandomStream.secure()`` outside tests.
    deviation : int
        From 1 to 2**26; from 2 on the standard deviation to twenty digits.

    Raises
    ------
    ValueError
        If the deviation is out of range.
    """
    if not 1 <= deviation <= LARGEST_SHARE:
        raise ValueError("the deviation of discrete noise must be between 1 and 2**26")
    parts: list[NDArray[np.int64]] = []
    missing = count
    while missing > 0:
        # About three quarters are kept.
        drawn = _discrete_laplace(stream, missing + missing // 3 + 8, deviation)
        distance = np.abs(drawn) - deviation
        kept = drawn[_bernoulli_exp(stream, distance * distance, 2 * deviation * deviation)]
        parts.append(kept[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _discrete_laplace(stream: RandomStream, count: int, scale: int) -> NDArray[np.int64]:
    """Draw integers with probability proportional to ``exp(-|x| / scale)``."""
    parts: list[NDArray[np.int64]] = []
    missing = count
    while missing > 0:
        tries = 2 * missing + 8
        fraction = stream.below(scale, tries).astype(np.int64)
        fraction = fraction[_bernoulli_exp(stream, fraction, scale)]
        size = fraction + scale * _geometric(stream, len(fraction))
        negative = stream.below(2, len(size)).astype(bool)
        # Zero must not be drawn twice as often, once with each sign.
        signed = np.where(negative, -size, size)[~(negative & (size == 0))]
        parts.append(signed[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts)


def _geometric(stream: RandomStream, count: int) -> NDArray[np.int64]:
    """Draw how many events of probability 1/e happen in a row."""
    result = np.zeros(count, dtype=np.int64)
    active = np.arange(count)
    while len(active):
        active = active[_bernoulli_below_one(stream, np.ones(len(active), dtype=np.int64), 1)]
        result[active] += 1
    return result


def _bernoulli_exp(
    stream: RandomStream, numerators: NDArray[np.int64], denominator: int
) -> NDArray[np.bool_]:
    """Say yes with probability ``exp(-numerator / denominator)``, exactly, for each one."""
    whole, rest = np.divmod(numerators, denominator)
    yes = _bernoulli_below_one(stream, rest, denominator)
    candidates = np.flatnonzero(yes & (whole > 0))
    # exp(-k) is the probability that an event of probability 1/e happens k times in a row.
    yes[candidates] = _geometric(stream, len(candidates)) >= whole[candidates]
    return yes


def _bernoulli_below_one(
    stream: RandomStream, numerators: NDArray[np.int64], denominator: int
) -> NDArray[np.bool_]:
    """Say yes with probability ``exp(-f)`` for fractions f in [0, 1] (von Neumann's series)."""
    rounds = np.ones(len(numerators), dtype=np.int64)
    active = np.arange(len(numerators))
    number = 1
    while len(active):
        # A fair chance of f / number: the draw is uniform below denominator * number.
        draw = stream.below(denominator * number, len(active))
        active = active[draw < numerators[active].astype(np.uint64)]
        rounds[active] += 1
        number += 1
    return rounds % 2 == 1
