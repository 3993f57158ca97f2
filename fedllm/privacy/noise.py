"""Gaussian noise from a cryptographic generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedllm.randomness import RandomStream


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
