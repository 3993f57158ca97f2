"""Gaussian noise, whole or in the shares that several sites add."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedllm.randomness import RandomStream


def noise_share(honest_sites: int) -> float:
    """Return the scale of one site's noise when the noise of all of them adds up.

    The variances of independent shares add, so that ``honest_sites`` shares together have the
    standard deviation that one party would have added alone (Kairouz et al. 2021, "The
    distributed discrete Gaussian mechanism", section 1; here in the continuous form).

    Parameters
    ----------
    honest_sites : int
        The smallest number of sites whose sum is opened, less those that may reveal their
        shares. More sites only add noise.

    Raises
    ------
    ValueError
        If there is no honest site.
    """
    if honest_sites < 1:
        raise ValueError("noise shares need at least one honest site")
    return 1.0 / sqrt(honest_sites)


def gaussian_noise(
    stream: RandomStream, count: int, standard_deviation: float
) -> NDArray[np.float64]:
    """Draw ``count`` float64 normal numbers with mean 0.

    Raises
    ------
    ValueError
        If the standard deviation is negative or not finite.
    """
    if not (np.isfinite(standard_deviation) and standard_deviation >= 0):
        raise ValueError("a standard deviation must be finite and not negative")
    return standard_deviation * stream.normal(count)
