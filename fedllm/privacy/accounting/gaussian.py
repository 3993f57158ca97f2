"""Closed forms for the Gaussian mechanism (Balle and Wang 2018, theorem 8)."""

from __future__ import annotations

import math

from scipy.special import log_ndtr

# Relative rounding error of delta: the difference of two logs of size 1 that differ by mu.
_SAFETY = 1e-6


def gaussian_log_delta(mu: float, epsilon: float) -> float:
    """Return the natural log of the exact delta of N(0, 1) against N(``mu``, 1)."""
    above = float(log_ndtr(mu / 2 - epsilon / mu))
    below = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    if below >= above:
        return -math.inf
    return above + math.log(-math.expm1(below - above))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the exact epsilon of unsampled Gaussians composed to ``mu``, rounded up.

    Parameters
    ----------
    mu : float
        Square root of the sum of ``1 / noise_multiplier**2`` over all releases.
    delta : float
        In (0, 1).

    Returns
    -------
    float
        Never below the exact value; infinite when it is too large for a float.
    """
    if mu <= 0:
        return 0.0
    target = math.log(delta)
    # Zero-concentrated DP (Bun and Steinke 2016, proposition 1.3): always an upper bound.
    high = mu * mu / 2 + mu * math.sqrt(-2 * target)
    if not math.isfinite(high):
        return math.inf
    # delta(0) is the total variation distance, erf(mu / sqrt(8)); below 0.4 mu.
    if mu < 1e-9:
        return 0.0 if 0.4 * mu <= delta else high
    low = 0.0
    if gaussian_log_delta(mu, 0.0) <= target - _SAFETY:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        if gaussian_log_delta(mu, middle) <= target - _SAFETY:
            high = middle
        else:
            low = middle
    return high * (1 + 1e-9)


def one_step_epsilon(sampling_rate: float, noise_multiplier: float, delta: float) -> float:
    """Return the exact epsilon of one Poisson-sampled Gaussian step, rounded up by about 1e-6.

    Amplification by subsampling (Balle, Barthe, Gaboardi 2018, theorem 8), which the pair
    of Gaussians attains. Composition never lowers epsilon, so this is a lower bound (up to
    that rounding) for any run that holds such a step.
    """
    if delta >= sampling_rate:
        return 0.0
    unsampled = gaussian_epsilon(1 / noise_multiplier, delta / sampling_rate)
    if unsampled > 500:
        return max(0.0, unsampled + math.log(sampling_rate))
    return math.log1p(sampling_rate * math.expm1(unsampled))
