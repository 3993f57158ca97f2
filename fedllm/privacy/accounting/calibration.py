"""Choose noise or steps before training, so that the accountant agrees afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, Context, Decimal

from fedllm.errors import BudgetError, ConfigError
from fedllm.privacy.accounting.accountants import epsilon as account
from fedllm.privacy.accounting.accountants import quick_bound, upper_bound
from fedllm.privacy.accounting.events import Event, Folded, PoissonGaussian, fold

_DIGITS = 4
_SMALLEST_NOISE, _LARGEST_NOISE = 1e-3, 1e9
# How near a trial comes to the ends of the interval that it divides.
_NEAREST, _FARTHEST = 0.02, 0.98


def solve_noise_multiplier(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    spent: Sequence[Event] = (),
) -> float:
    """Return the smallest noise multiplier that keeps all events within a budget.

    Parameters
    ----------
    epsilon, delta : float
        The budget that ``spent`` and the planned steps must keep together.
    sampling_rate : float
        Probability of each unit to be in a batch, in (0, 1].
    steps : int
        Planned Poisson-sampled steps, at least 1.
    spent : sequence of Event
        What already happened to the same data.

    Returns
    -------
    float
        Rounded up to four significant digits and checked with the accountant afterwards;
        never below 0.001.

    Raises
    ------
    BudgetError
        If ``spent`` alone uses up the budget, or no noise is enough.
    ConfigError
        If an argument is out of range.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps}: nothing to calibrate", "plan at least one step")
    _check_budget(epsilon, delta, spent)

    def plan(noise: float) -> Folded:
        return fold([*spent, PoissonGaussian(sampling_rate, noise, steps)])

    # The quick bound may find that what is spent alone is too much, where the exact one does not.
    rough = quick_bound if quick_bound(fold(spent), delta) < 0.9 * epsilon else upper_bound
    noise = _bracket_noise(lambda noise: rough(plan(noise), delta), epsilon)
    noise = _bisect_noise(lambda noise: upper_bound(plan(noise), delta), epsilon, noise)
    for _ in range(20):
        noise = _round_up(noise)
        events = [*spent, PoissonGaussian(sampling_rate, noise, steps)]
        if account(events, delta).value <= epsilon:
            return noise
        noise *= 1 + 10.0 ** (1 - _DIGITS)
    raise _impossible(epsilon, delta)


def _check_budget(epsilon: float, delta: float, spent: Sequence[Event]) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"epsilon = {epsilon!r} is not a positive number", "use 0.5 to 10")
    already = account(spent, delta).value
    if already >= epsilon:
        raise BudgetError(
            f"{already:.4g} of epsilon {epsilon:g} at delta {delta:g} is already spent",
            "raise epsilon or use data that no earlier run has touched",
        )


def _bracket_noise(cost: Callable[[float], float], epsilon: float) -> float:
    """Return a noise multiplier that is enough, less than twice too large for ``cost``."""
    high = 1.0
    while cost(high) > epsilon:
        high *= 2
        if high > _LARGEST_NOISE:
            raise _impossible(epsilon, None)
    while high > _SMALLEST_NOISE and cost(max(high / 2, _SMALLEST_NOISE)) <= epsilon:
        high = max(high / 2, _SMALLEST_NOISE)
    return high


def _bisect_noise(cost: Callable[[float], float], epsilon: float, high: float) -> float:
    low = high / 2
    while low >= _SMALLEST_NOISE and cost(low) <= epsilon:
        low, high = low / 2, low
    if low < _SMALLEST_NOISE:
        return high
    # Epsilon is close to a power law in the noise, so the secant of the logarithms lands near
    # the root; the bounds keep it a bisection in the worst case.
    low_cost, high_cost = (_log_ratio(cost(noise), epsilon) for noise in (low, high))
    while high / low > 1 + 2 * 10.0**-_DIGITS:
        share = low_cost / (low_cost - high_cost)
        share = min(max(share, _NEAREST), _FARTHEST) if math.isfinite(share) else 0.5
        for trial in (share, 0.5):
            middle = low * (high / low) ** trial
            middle_cost = _log_ratio(cost(middle), epsilon)
            if middle_cost <= 0:
                high, high_cost = middle, middle_cost
            else:
                low, low_cost = middle, middle_cost
    return high


def _log_ratio(value: float, target: float) -> float:
    return math.log(max(value, 1e-300) / target)


def _round_up(value: float) -> float:
    return float(Context(prec=_DIGITS, rounding=ROUND_CEILING).create_decimal(Decimal(repr(value))))


def _impossible(epsilon: float, delta: float | None) -> BudgetError:
    at = "" if delta is None else f" at delta {delta:g}"
    return BudgetError(
        f"no noise multiplier keeps epsilon {epsilon:g}{at} for these steps",
        "raise epsilon, take fewer steps or a lower sampling rate",
    )
