"""What the sum of an honest cohort stays within, whatever its records are: a law to test by.

A sum that is opened is X = S + E. S is what the sites add before noise: clipping bounds its
L2 norm by the triangle inequality. E is noise and rounding, which no record makes larger.

In each direction E is sub-Gaussian: E exp(a.E) <= exp(|a|**2 v / 2) for a variance v. That holds
for Gaussian noise of variance v, for discrete Gaussian noise (Canonne, Kamath, Steinke 2020), for
random rounding to steps h with v = h**2 / 4 (Hoeffding 1963), given everything before it, and sums
of independent ones have the sum of their variances. What a quantiser cuts off of x = s + z changes
nothing: cut(x) = cut(z) + d with |d| <= |s| in each value, and cut(z) is an odd function of slope
at most 1 of the noise, so that it is sub-Gaussian with the noise's own variance; and with 1, in
parts of the bound that it is cut off at, for its mean is 0 (Hoeffding). None of this asks how S
depends on E, so several local steps, each at an adapter that has the noise of those before, are
covered.

For P values P(|E|**2 > v (P + 2 sqrt(P t) + 2 t)) <= exp(-t) (Hsu, Kakade, Zhang 2012, "A tail
inequality for quadratic forms of subgaussian random vectors"; Laurent and Massart 2000 for
Gaussian noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Probability that any norm of one opened sum of an honest cohort is above its limit: half of it
# for batches that are larger than `most_drawn`, half for noise and rounding.
FALSE_ALARM = 1e-6
# Updates are float32 in places, and sums of them have rounding of their own.
_FLOATING = 1 + 1e-4


@dataclass(frozen=True)
class SumLaw:
    """What the norms of one opened sum stay within, in parts of the bounds of an update.

    Attributes
    ----------
    signal : float
        L2 norm of what the sites' records add to the sum at most, however they point.
    variance : float
        Of noise and rounding in one value of the sum.
    """

    signal: float
    variance: float

    def limit(self, values: int, tests: int = 1) -> float:
        """Return what the L2 norm of ``values`` values of the sum is above once in a million.

        Parameters
        ----------
        values : int
            Of the vector, or of a part of it.
        tests : int
            How many such norms are looked at; all together give one false alarm in a million.
        """
        tail = log(2 * tests / FALSE_ALARM)
        square = values + 2 * sqrt(values * tail) + 2 * tail
        return (self.signal + sqrt(self.variance * square)) * _FLOATING

    def ratios(self, total: NDArray[np.floating[Any]], sizes: Sequence[int]) -> NDArray[np.float64]:
        """Return norms over their limits: of the whole sum, then of each segment.

        Parameters
        ----------
        total : float array (P,)
            The opened sum (not the mean), in parts of the bounds.
        sizes : sequence of int
            Values of each segment, in order.

        Returns
        -------
        float64 array (1 + segments,)
        """
        tests = 1 + len(sizes)
        parts = [total, *np.split(total, np.cumsum(sizes)[:-1])]
        return np.array([np.linalg.norm(part) / self.limit(len(part), tests) for part in parts])


def most_drawn(expected: float, variance: float, largest: float = 1.0) -> float:
    """Return what a sum of independent draws stays within, by Bernstein's inequality.

    It is above once in two million, half of `FALSE_ALARM`.

    Parameters
    ----------
    expected, variance : float
        Of the sum.
    largest : float
        Most that one draw adds.
    """
    tail = log(2 / FALSE_ALARM)
    return expected + sqrt(2 * variance * tail) + largest * tail / 3


def noise_variance(deviation: float) -> float:
    """Return the variance of one site's noise in one value, cut off at its bound.

    Parameters
    ----------
    deviation : float
        Standard deviation before it is cut off, in parts of the bound.
    """
    return min(deviation**2, 1.0)


def rounding_variance(sites: int, bits: int) -> float:
    """Return the variance of the sites' random rounding in one value, in parts of its bound."""
    step = 2.0 / ((1 << bits) - 2)
    return sites * step**2 / 4
