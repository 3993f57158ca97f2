"""A clipping norm that follows the gradients (Andrew, Thakkar, McMahan, Ramaswamy 2021).

Beside its clipped gradient each unit of a batch gives one half, plus if its gradient was within
the norm and minus if not. Gradients in units of the norm and a multiple of that number are one
vector, and one Gaussian mechanism releases it; so the count has noise of its own, and its
charge is that all noise is larger by a fixed factor. The norm then moves towards the wanted
quantile of the gradients' norms, which is something done to what was released.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream

# What the count adds to a unit's contribution, in units of the clipping norm: 2% more noise.
COUNT_WEIGHT = 0.2
# How far the norm moves at most in one step: by a factor of exp(0.2) either way.
STEP = 0.2
# As far as a clipping norm may be configured.
SMALLEST, LARGEST = 1e-12, 1e12


class AdaptiveClipping:
    """The clipping norm of a site in one run.

    Parameters
    ----------
    norm : float
        Where it starts.
    quantile : float
        Part of the units whose gradients should be within it, in (0, 1).
    """

    def __init__(self, norm: float, quantile: float) -> None:
        self.norm = norm
        self._quantile = quantile

    def noised_mean(
        self,
        total: NDArray[np.float64],
        norms: NDArray[np.float64],
        noise_multiplier: float,
        expected_batch_size: float,
        noise: RandomStream,
    ) -> NDArray[np.float64]:
        """Release one step's sum and count, move the norm, and return the mean gradient (P,).

        Parameters
        ----------
        total : ndarray
            (P,) float64, sum of gradients clipped to `norm`.
        norms : ndarray
            (U,), of the batch's units before clipping; empty for an empty batch.
        noise_multiplier : float
            Standard deviation of the noise over the L2 bound of one unit's part of both.
        expected_batch_size : float
            Public; what sum and count are divided by.
        noise : RandomStream
            ``RandomStream.secure()`` outside tests.
        """
        used = self.norm
        released = joint_vector(total, norms, used)
        deviation = noise_multiplier * sensitivity()
        released = released + gaussian_noise(noise, len(released), deviation)
        within = 0.5 + float(released[-1]) / (2 * COUNT_WEIGHT) / expected_batch_size
        moved = used * math.exp(-STEP * (min(max(within, 0.0), 1.0) - self._quantile))
        self.norm = min(max(moved, SMALLEST), LARGEST)
        return released[:-1] * (used / expected_batch_size)


def sensitivity() -> float:
    """Return the most (L2) that one unit adds to `joint_vector`."""
    return math.hypot(1.0, COUNT_WEIGHT)


def joint_vector(
    total: NDArray[np.float64], norms: NDArray[np.float64], clipping_norm: float
) -> NDArray[np.float64]:
    """Return the sum in units of the clipping norm, and the weighted count, (P + 1,)."""
    count = float(np.count_nonzero(norms <= clipping_norm)) - len(norms) / 2
    return np.append(total / clipping_norm, 2 * COUNT_WEIGHT * count)
