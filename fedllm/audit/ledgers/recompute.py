"""Epsilon from events alone, by three accountants that are not fedllm's own.

The privacy loss distribution and Rényi DP of Google's dp_accounting, and the PRV accountant
of Opacus, each used as its authors ship it. Nothing of our own accountants
(`fedllm.privacy.accounting.accountants`) is called, so that an error there cannot hide here.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedllm.errors import ConfigError
from fedllm.privacy.accounting.events import (
    Event,
    Gaussian,
    NonPrivate,
    PoissonDiscreteGaussian,
    PoissonGaussian,
    Stated,
)

Step = tuple[float, float]

# Where the libraries' grids grow beyond memory or minutes; Rényi DP still holds there.
_SMALLEST_NOISE = 0.3
_MOST_DISTINCT_PLD, _MOST_DISTINCT_PRV = 400, 6
_SMALLEST_DELTA = 1e-10
_PRV_ERROR = 0.01


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What three accountants make of the same events.

    Attributes
    ----------
    pld, rdp, prv : float, optional
        Upper bounds on epsilon, infinite without privacy; none where the accountant has no
        answer (too little noise, too small a delta, too many different events).
    """

    pld: float | None
    rdp: float | None
    prv: float | None

    @property
    def value(self) -> float:
        """The tightest of the upper bounds."""
        return min((x for x in (self.pld, self.rdp, self.prv) if x is not None), default=math.inf)

    @property
    def tight(self) -> bool:
        """Whether a numerical accountant has an answer; Rényi DP alone may be far above."""
        return math.isinf(self.value) or self.pld is not None or self.prv is not None

    @property
    def spread(self) -> float:
        """Relative distance of the two numerical accountants; 0 where one has no answer."""
        if self.pld is None or self.prv is None or not math.isfinite(self.pld) or self.pld == 0:
            return 0.0
        return abs(self.pld - self.prv) / self.pld


def recompute(events: Iterable[Event], delta: float) -> Recomputed:
    """Add up events with each accountant.

    Parameters
    ----------
    events : iterable of Event
        All that happened, in any order.
    delta : float
        In (0, 1).
    """
    steps: Counter[Step] = Counter()
    stated = 0.0
    for event in events:
        if isinstance(event, NonPrivate):
            return Recomputed(math.inf, math.inf, math.inf)
        if isinstance(event, Stated):
            # Nothing to compute with: both its numbers add up.
            stated, delta = stated + event.epsilon, delta - event.delta
            continue
        if isinstance(event, Gaussian):
            steps[1.0, event.noise_multiplier] += event.count
        elif isinstance(event, PoissonGaussian | PoissonDiscreteGaussian):
            # Discrete noise is accounted as the continuous noise that it is worth; what it may
            # fail by (`fedllm.privacy.discrete`) is far below the tolerance of an audit.
            steps[event.sampling_rate, event.noise_multiplier] += event.steps
        else:
            raise ConfigError(
                f"privacy event {type(event).__name__} has no recomputation", "update fedllm"
            )
    steps = Counter({step: count for step, count in steps.items() if count > 0 and step[0] > 0})
    if delta <= 0:
        return Recomputed(math.inf, math.inf, math.inf)
    found = _all_three(tuple(sorted(steps.items())), delta)
    added = (None if x is None else x + stated for x in (found.pld, found.rdp, found.prv))
    return Recomputed(*added)


@lru_cache(maxsize=256)
def _all_three(counted: tuple[tuple[Step, int], ...], delta: float) -> Recomputed:
    steps = Counter(dict(counted))
    if not steps:
        return Recomputed(0.0, 0.0, 0.0)
    if min(noise for _, noise in steps) <= 0:
        return Recomputed(math.inf, math.inf, math.inf)
    with warnings.catch_warnings(), np.errstate(all="ignore"), _quiet():
        warnings.simplefilter("ignore")
        return Recomputed(_pld(steps, delta), _rdp(steps, delta), _prv(steps, delta))


@contextmanager
def _quiet() -> Iterator[None]:
    # dp_accounting logs every order of Rényi DP that it leaves out.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _numeric(steps: Counter[Step], delta: float, most: int) -> bool:
    enough = min(noise for _, noise in steps) >= _SMALLEST_NOISE
    return enough and len(steps) <= most and delta >= _SMALLEST_DELTA


def _pld(steps: Counter[Step], delta: float) -> float | None:
    import dp_accounting
    from dp_accounting import pld

    if not _numeric(steps, delta, _MOST_DISTINCT_PLD):
        return None
    interval = 5e-4 if len(steps) <= 4 else 1e-3
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    try:
        for (rate, noise), count in steps.items():
            gaussian = dp_accounting.GaussianDpEvent(noise)
            event = gaussian if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, gaussian)
            accountant.compose(event, count)
        return _usable(float(accountant.get_epsilon(delta)))
    except (ArithmeticError, ValueError, MemoryError):
        return None


def _rdp(steps: Counter[Step], delta: float) -> float | None:
    import dp_accounting
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant()
    try:
        for (rate, noise), count in steps.items():
            gaussian = dp_accounting.GaussianDpEvent(noise)
            event = gaussian if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, gaussian)
            accountant.compose(event, count)
        value = _usable(float(accountant.get_epsilon(delta)))
    except (ArithmeticError, ValueError):
        return None
    # Also said where rounding made a divergence negative; the other two know a true zero.
    return None if value == 0 else value


def _prv(steps: Counter[Step], delta: float) -> float | None:
    from opacus.accountants import PRVAccountant

    if not _numeric(steps, delta, _MOST_DISTINCT_PRV):
        return None
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, count) for (rate, noise), count in steps.items()]
    try:
        return _usable(float(accountant.get_epsilon(delta, eps_error=_PRV_ERROR)))
    except (ArithmeticError, ValueError, RuntimeError, MemoryError):
        return None


def _usable(value: float) -> float | None:
    return value if math.isfinite(value) and value >= 0 else None
