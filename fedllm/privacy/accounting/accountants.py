"""Every epsilon of the project, computed from events.

Neighbouring data sets: the number of units (records or persons) and the sampling rate are
fixed and public; neighbours differ in the content of one unit, which is replaced by an empty
one that contributes nothing (zero-out adjacency). For the Poisson-sampled Gaussian this has
the same privacy loss as adding or removing the unit. Replacing one unit's content by
another's is two such steps, and costs more than is stated here.

The main accountant is the privacy loss distribution of dp_accounting in its pessimistic
form (Doroshenko et al. 2022, "Connect the dots"). It is checked against Rényi DP, closed
forms and Opacus's PRV accountant (Gopi, Lee, Wutschitz 2021).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedllm.errors import ConfigError
from fedllm.privacy.accounting.events import Event, Folded, fold
from fedllm.privacy.accounting.gaussian import gaussian_epsilon, one_step_epsilon
from fedllm.privacy.accounting.renyi import renyi_epsilon

# Below this delta the rounding of Fourier transforms and the truncated tails (1e-15 for each
# composition) are no longer small against delta; the closed forms hold for every delta.
SMALLEST_NUMERIC_DELTA = 1e-10
_GRID_POINTS = 200_000  # of one composed distribution: about 0.1 s
_GRID_POINTS_OF_ALL_EVENTS = 2_000_000
_BLOCK = 1000
_PRV_EVENTS = 4
_PRV_POINTS = 400_000
# Parts of delta that PRV's own error, its support and its mesh are given.
_ERROR_PARTS, _SUPPORT_PARTS, _MESH_PARTS = 1000, 8000, 12_000


@dataclass(frozen=True, slots=True)
class EpsilonEstimate:
    """One epsilon and the figures behind it.

    Attributes
    ----------
    value : float
        The epsilon to state and to compare with a ceiling: an upper bound, perhaps infinite.
    pld, rdp, closed_form : float or None
        Upper bounds: privacy loss distribution, Rényi, and the Gaussian without the help of
        sampling (exact when nothing was sampled). None where the method cannot be trusted.
    prv : float or None
        Opacus's upper figure; None where it cannot be trusted or would take too long.
    lower : float
        The largest lower bound that was found; ``value`` is never below it.
    """

    value: float
    pld: float | None = None
    prv: float | None = None
    rdp: float | None = None
    closed_form: float | None = None
    lower: float = 0.0


def epsilon(events: Sequence[Event], delta: float) -> EpsilonEstimate:
    """Return what ``events`` cost together at ``delta``.

    Neighbours are data sets in which one unit's content is replaced by an empty one, with
    the number of units and the sampling rates fixed; see this module's text.

    Parameters
    ----------
    events : sequence of Event
        All that happened to the data, in any order.
    delta : float
        In (0, 1).

    Returns
    -------
    EpsilonEstimate
        ``value`` is 0 for no steps and infinite where something happened without noise.

    Raises
    ------
    ConfigError
        If ``delta`` is not in (0, 1).
    """
    _check_delta(delta)
    ideal, delta, inexact = _idealised(fold(events), float(delta))
    estimate = _estimate(ideal, delta)
    return replace(estimate, value=estimate.value + inexact) if inexact else estimate


@functools.lru_cache(maxsize=2048)
def upper_bound(folded: Folded, delta: float) -> float:
    """Return the smallest trustworthy upper bound, without the slower cross-checks.

    Raises
    ------
    ConfigError
        If ``delta`` is not in (0, 1).
    """
    _check_delta(delta)
    folded, delta, inexact = _idealised(folded, delta)
    return _choose(_bounds(folded, delta)) + inexact


def quick_bound(folded: Folded, delta: float) -> float:
    """Return an upper bound in microseconds, from closed forms only; about a tenth above."""
    _check_delta(delta)
    folded, delta, inexact = _idealised(folded, delta)
    return _choose(_closed_bounds(folded, delta)) + inexact


def _idealised(folded: Folded, delta: float) -> tuple[Folded, float, float]:
    """Replace discrete noise by the Gaussian that stands for it, for less delta.

    What was only stated is taken off beforehand in the same way: both its numbers add up.

    Returns that, the delta that is left, and what adds to epsilon. If M is within max
    divergence d of an (epsilon, delta) mechanism but for probability f, it is
    (epsilon + 2 d, exp(d) delta + f) differentially private.
    """
    ideal = replace(folded, failure=0.0, divergence=0.0, stated=0.0, stated_delta=0.0)
    if folded == ideal:
        return folded, delta, 0.0
    left = (delta - folded.failure - folded.stated_delta) * math.exp(-folded.divergence)
    if left <= 0:
        return Folded(non_private=True), delta, 0.0
    return ideal, left, 2 * folded.divergence + folded.stated


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(
            f"delta = {delta!r} is not in (0, 1)", "use a delta far below 1 / number of records"
        )


@functools.lru_cache(maxsize=2048)
def _estimate(folded: Folded, delta: float) -> EpsilonEstimate:
    if folded.non_private:
        return EpsilonEstimate(math.inf, lower=math.inf)
    if not folded.sampled and folded.mu_squared == 0:
        return EpsilonEstimate(0.0, pld=0.0, prv=0.0, rdp=0.0, closed_form=0.0)
    bounds = _bounds(folded, delta)
    value = _choose(bounds)
    pld, rdp, closed_form = bounds
    if not folded.sampled:
        return EpsilonEstimate(value, None, None, rdp, closed_form, value)
    low, high = _prv_interval(folded, delta, value)
    steps = [one_step_epsilon(rate, noise, delta) for rate, noise, _ in folded.sampled]
    lower = max(low, gaussian_epsilon(math.sqrt(folded.mu_squared), delta), *steps)
    lower = max(0.0, lower * (1 - 1e-5) - 1e-9)  # their own rounding
    if value < lower:
        # One of the methods is wrong and nobody knows which: take the largest.
        value = max(x for x in (*bounds, high, lower) if x is not None)
    return EpsilonEstimate(value, pld, high, rdp, closed_form, min(lower, value))


def _bounds(folded: Folded, delta: float) -> tuple[float | None, float | None, float | None]:
    """Return upper bounds by privacy loss distribution, Rényi DP and closed form."""
    rdp, closed_form = _closed_bounds(folded, delta)
    if folded.non_private or not folded.sampled:
        return None, rdp, closed_form
    return _pld_epsilon(folded, delta), rdp, closed_form


def _closed_bounds(folded: Folded, delta: float) -> tuple[float, float]:
    if folded.non_private:
        return math.inf, math.inf
    squares = [steps / noise**2 for _, noise, steps in folded.sampled]
    closed_form = gaussian_epsilon(math.sqrt(math.fsum([*squares, folded.mu_squared])), delta)
    return renyi_epsilon(folded, delta), closed_form


def _choose(bounds: tuple[float | None, ...]) -> float:
    usable = [bound for bound in bounds if bound is not None and bound >= 0]
    return min(usable, default=math.inf)


def _pld_epsilon(folded: Folded, delta: float) -> float | None:
    """Return the pessimistic estimate, or None where the grid would be too large."""
    interval = _grid_interval(folded)
    # A transform raised to the power ``steps`` carries an error of about 1e-16 * steps.
    trusted = delta >= max(SMALLEST_NUMERIC_DELTA, 1e-13 * folded.steps)
    if interval is None or not trusted:
        return None
    try:
        with np.errstate(all="ignore"):
            value = float(_compose(folded, interval).get_epsilon_for_delta(delta))
    except (ArithmeticError, ValueError, MemoryError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _grid_interval(folded: Folded) -> float | None:
    # The error of the estimate is about steps * interval**2 / 4, always upwards.
    interval = min(1e-3, 0.1 / math.sqrt(folded.steps))
    smallest_noise = min(noise for _, noise, _ in folded.sampled)
    # Loss of one step at ten standard deviations (a tail of e**-50), and of all of them.
    one = 10 / smallest_noise + 0.5 / smallest_noise**2
    everything = renyi_epsilon(folded, 1e-15)
    distinct = len(folded.sampled) + 1
    points = min(_GRID_POINTS, _GRID_POINTS_OF_ALL_EVENTS // distinct)
    if points < 1000:
        return None
    interval = max(interval, 2 * max(one, everything) / points)
    return interval if interval <= 0.5 else None


def _compose(folded: Folded, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    parts = []
    for rate, noise, steps in folded.sampled:
        one = pld.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=interval
        )
        # In blocks, because the library's short distributions compose in time ~ steps.
        blocks, rest = divmod(steps, _BLOCK)
        if blocks:
            parts.append(one.self_compose(_BLOCK).self_compose(blocks))
        if rest:
            parts.append(one.self_compose(rest))
    if folded.mu_squared > 0:
        noise = 1 / math.sqrt(folded.mu_squared)
        parts.append(pld.from_gaussian_mechanism(noise, value_discretization_interval=interval))
    # Pairwise, so that most convolutions are of short distributions.
    while len(parts) > 1:
        pairs = [a.compose(b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    (whole,) = parts
    return whole


def _prv_interval(folded: Folded, delta: float, scale: float) -> tuple[float, float | None]:
    """Return a lower bound by Opacus's PRV and its upper figure; (0, None) where it has none.

    PRV takes about a tenth of a second for each distinct event, so it checks short lists only.
    """
    events = [*folded.sampled]
    if folded.mu_squared > 0:
        events.append((1.0, 1 / math.sqrt(folded.mu_squared), 1))
    if len(events) > _PRV_EVENTS or delta < SMALLEST_NUMERIC_DELTA:
        return 0.0, None
    steps = sum(count for _, _, count in events)
    # Support and mesh as in Gopi et al. 2021, remark 5.6; a coarser mesh where memory asks.
    support = max(renyi_epsilon(folded, delta / _SUPPORT_PARTS / steps), scale) + 3
    mesh_of_error = 1 / math.sqrt(steps * math.log(_MESH_PARTS / delta) / 2)
    error = max(0.01, 2 * support / (mesh_of_error * _PRV_POINTS))
    useless = error >= scale or error > max(0.1, 0.1 * scale)
    if useless or not math.isfinite(support):
        return 0.0, None
    try:
        low, high = _opacus_interval(events, delta, error)
    except (ArithmeticError, ValueError, RuntimeError, MemoryError):
        return 0.0, None
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0, None
    return max(0.0, low), max(0.0, high)


def _opacus_interval(
    events: Sequence[tuple[float, float, int]], delta: float, error: float
) -> tuple[float, float]:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps) for rate, noise, steps in events]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        composed = accountant._get_dprv(eps_error=error, delta_error=delta / _ERROR_PARTS)
        low, _, high = composed.compute_epsilon(delta, delta / _ERROR_PARTS, error)
    return float(low), float(high)
