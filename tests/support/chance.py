"""How far a correct program may stray: bounds it leaves with a known, tiny probability.

A test that compares unseeded random numbers with what they should be takes its bounds from
here, so that it cannot fail by chance, and draws so many that the bug it is for still does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FALSE_ALARM = 1e-12


def standard_deviation_bounds(
    count: int, deviation: float, probability: float = FALSE_ALARM
) -> tuple[float, float]:
    """Return what the root mean square of ``count`` centred normal numbers lies within.

    The sum of their squares over ``deviation`` squared has a chi-square law. `numpy.std`
    takes the mean off as well, which costs one degree of freedom; the bounds hold for both.
    """
    low = stats.chi2.ppf(probability / 2, count - 1) / count
    high = stats.chi2.isf(probability / 2, count) / count
    return deviation * low**0.5, deviation * high**0.5


def uniform_below(values: NDArray[np.integer], bound: int) -> float:
    """Return the p-value of integers under the claim that they are uniform below a large bound.

    The distribution of Kolmogorov and Smirnov's distance is exact for values without ties.
    """
    return float(stats.kstest(values.astype(np.float64) / bound, "uniform").pvalue)
