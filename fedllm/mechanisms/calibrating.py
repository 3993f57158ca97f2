"""How much noise the steps that are left of a run need."""

from __future__ import annotations

from functools import lru_cache

from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.calibration import solve_noise_multiplier
from fedllm.privacy.accounting.events import Event, PoissonGaussian


@lru_cache(maxsize=256)
def choose_noise_multiplier(
    target_epsilon: float,
    delta: float,
    rate: float,
    steps: int,
    charged: tuple[Event, ...],
    beside: tuple[Event, ...] = (),
) -> float:
    """Return the noise multiplier for the steps that are left of a run.

    The one used before, as long as the whole run stays within its epsilon: equal events
    compose most tightly. After a crash the charged steps are more than was planned, and the
    steps that are left get more noise.

    Parameters
    ----------
    target_epsilon, delta : float
        What the run promises.
    rate : float
        Sampling rate of the steps that are left.
    steps : int
        How many they are.
    charged : tuple of Event
        What training has spent in this run so far.
    beside : tuple of Event
        What the whole run spends on anything else.

    Raises
    ------
    BudgetError
        If no noise is enough.
    """
    last = charged[-1] if charged else None
    if isinstance(last, PoissonGaussian) and last.sampling_rate == rate:
        whole = [*charged, PoissonGaussian(rate, last.noise_multiplier, steps), *beside]
        if epsilon(whole, delta).value <= target_epsilon:
            return last.noise_multiplier
    return solve_noise_multiplier(target_epsilon, delta, rate, steps, (*charged, *beside))
