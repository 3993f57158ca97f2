"""Rényi differential privacy of the Poisson-sampled Gaussian, safe against rounding.

Whole orders by a closed form, fractional ones by quadrature (Mironov, Talwar, Zhang 2019,
section 3.3): quick, valid for every delta, and loose by about a tenth. Libraries return an
epsilon of zero when rounding makes a divergence negative; here a bound on the rounding error
is added instead.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from fedllm.privacy.accounting.events import Folded

_FRACTIONAL_ORDERS = np.array([tenths for tenths in range(11, 120) if tenths % 10]) / 10
_WHOLE_ORDERS = [*range(2, 65), *range(68, 129, 4), *range(144, 513, 16), 640, 768, 1024]
ORDERS = np.concatenate([_FRACTIONAL_ORDERS, _WHOLE_ORDERS])
_DRAWS = np.arange(_WHOLE_ORDERS[-1] + 1)
_LOG_BINOMIALS = np.array(
    [
        gammaln(order + 1)
        - gammaln(_DRAWS + 1)
        - gammaln(np.maximum(order - _DRAWS, 0) + 1)
        + np.where(order >= _DRAWS, 0, -np.inf)
        for order in _WHOLE_ORDERS
    ]
)
# Absolute error of one log-moment: sums of terms of size up to a few thousand in float64.
_ROUNDING = 1e-11
# The quadrature's step in standard deviations of the noise, or in those of the noise for one
# unit's contribution, and how far it goes; its error is below 1e-25.
_STEP, _STEPS_IN_NOISE, _REACH = 0.125, 4, 12


@functools.lru_cache(maxsize=512)
def _log_moments(sampling_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Return ``log E[(P/Q)**order]`` at each order of one step, rounded up."""
    rate, noise = sampling_rate, noise_multiplier
    moments = np.concatenate([_fractional(rate, noise), _whole(rate, noise)])
    return np.maximum(moments, 0.0) + _ROUNDING * (1 + np.abs(moments))


def _whole(rate: float, noise: float) -> NDArray[np.float64]:
    terms = (
        _LOG_BINOMIALS
        + _DRAWS * math.log(rate)
        + (np.array(_WHOLE_ORDERS)[:, None] - _DRAWS) * math.log1p(-rate)
        + _DRAWS * (_DRAWS - 1) / (2 * noise**2)
    )
    return _log_sum(np.where(np.isneginf(_LOG_BINOMIALS), -np.inf, terms))


def _log_sum(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``log(sum(exp(terms)))`` of each row."""
    top = terms.max(axis=1)
    total: NDArray[np.float64] = top + np.log(np.exp(terms - top[:, None]).sum(axis=1))
    return total


def _fractional(rate: float, noise: float) -> NDArray[np.float64]:
    """Integrate by the trapezoid rule, whose error on this integrand falls exponentially."""
    if noise < 0.1:  # the grid would be large; sampling only helps
        return _FRACTIONAL_ORDERS * (_FRACTIONAL_ORDERS - 1) / (2 * noise**2)
    # Noise of standard deviation 1, a contribution of 1 / noise. The integrand is a mixture
    # of Gaussians with means between 0 and order / noise, and has its nearest complex
    # singularity pi * noise away from the real line.
    step = min(_STEP, noise / _STEPS_IN_NOISE)
    x = np.arange(-_REACH, _REACH + _FRACTIONAL_ORDERS[-1] / noise, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + x / noise - 0.5 / noise**2)
    density = -0.5 * x**2 + math.log(step / math.sqrt(2 * math.pi))
    return _log_sum(_FRACTIONAL_ORDERS[:, None] * ratio + density)


def renyi_epsilon(folded: Folded, delta: float) -> float:
    """Return an upper bound on epsilon by Rényi differential privacy.

    Conversion to (epsilon, delta): Canonne, Kamath, Steinke 2020, proposition 12.

    Parameters
    ----------
    folded : Folded
        What happened; infinite epsilon if any of it was not private.
    delta : float
        In (0, 1).
    """
    if folded.non_private:
        return math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        bounds = renyi_divergences(folded) + (
            np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
        )
    finite = bounds[np.isfinite(bounds)]
    return max(0.0, float(finite.min())) if len(finite) else math.inf


def renyi_divergences(folded: Folded) -> NDArray[np.float64]:
    """Return the Rényi divergence of all steps together at each of `ORDERS`, rounded up.

    What was only stated, and what discrete noise adds, is not in it; infinite or not a number
    where the divergence is too large for float64.
    """
    moments = np.zeros(len(ORDERS))
    with np.errstate(over="ignore", invalid="ignore"):
        for rate, noise, steps in folded.sampled:
            moments = moments + steps * _log_moments(rate, noise)
        divergences: NDArray[np.float64] = moments / (ORDERS - 1) + ORDERS * folded.mu_squared / 2
    return divergences
