"""The self-test's own accountant: what a run must have been charged, from public numbers alone.

It knows one mechanism, the Gaussian that nobody is sampled into, whose epsilon has a closed form
(Balle and Wang 2018, theorem 8), and calls nothing of the program's accounting. So it is told of
runs in which every unit is in every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, inf, sqrt
from typing import Any

from scipy.optimize import brentq
from scipy.stats import norm

# What the program may round its noise up by, and its epsilons.
ROUNDED_UP = 1.02


def delta_of(epsilon: float, mu: float) -> float:
    """Return the delta of a Gaussian of sensitivity ``mu`` and deviation 1."""
    upper = float(norm.sf(epsilon / mu - mu / 2))
    return upper - exp(min(700.0, epsilon + float(norm.logsf(epsilon / mu + mu / 2))))


def epsilon_of(mu_squared: float, delta: float) -> float:
    """Return the epsilon of Gaussians whose squared sensitivities add up to ``mu_squared``."""
    if delta <= 0:
        return inf
    mu = sqrt(mu_squared)
    if mu == 0 or delta_of(0.0, mu) <= delta:
        return 0.0
    # There the upper tail alone is below every delta that is meant.
    largest = mu * mu / 2 + 40 * mu
    return float(brentq(lambda e: delta_of(e, mu) - delta, 0.0, largest, xtol=1e-12))


def mu_squared_of(epsilon: float, delta: float) -> float:
    """Return how much the squared sensitivities may add up to for ``epsilon``."""
    return float(brentq(lambda m: delta_of(epsilon, m) - delta, 1e-6, 1e3, xtol=1e-14)) ** 2


def noise_for(mu_squared: float, releases: int) -> float:
    """Return the noise multiplier of each of ``releases`` that add up to ``mu_squared``."""
    return sqrt(releases / mu_squared)


def spent(events: Iterable[Any]) -> float:
    """Add up the squared sensitivities of ledger events in which everyone takes part.

    Raises
    ------
    ValueError
        If an event is of another kind.
    """
    total = 0.0
    for event in events:
        if getattr(event, "sampling_rate", 1.0) != 1.0:
            raise ValueError("the self-test's accountant knows runs without sampling alone")
        count = event.count if hasattr(event, "count") else event.steps
        total += count / event.noise_multiplier**2
    return total


def close(found: float, right: float) -> bool:
    """Whether a noise multiplier is the right one, rounded up at most."""
    return right * (1 - 1e-4) <= found <= right * ROUNDED_UP
