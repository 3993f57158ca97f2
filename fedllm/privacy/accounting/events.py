"""What happened to private records, in the vocabulary of Google's dp_accounting.

An event says which mechanism touched the data, never what it cost: every epsilon is
computed from events by `fedllm.privacy.accounting.accountants`.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedllm.errors import ConfigError
from fedllm.limits import MAX_SITES
from fedllm.privacy.discrete import (
    DIVERGENCE_PER_VALUE,
    LARGEST_SHARE,
    ROUNDING_FAILURE,
    TAIL_PROBABILITY,
    share_deviation,
)

MAX_STEPS = 10**12
# One share a site.
MAX_SHARES = MAX_SITES


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ConfigError(f"{name} must be a number", f"give a number in [{low:g}, {high:g}]")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not low <= number <= high or math.isinf(number):
        raise ConfigError(
            f"{name} = {number!r} is out of range", f"give a finite number in [{low:g}, {high:g}]"
        )
    return number + 0.0  # -0.0 and 0.0 are one event


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{name} must be a whole number", "count every step that was taken")
    count = operator.index(value)
    if not 0 <= count <= MAX_STEPS:
        raise ConfigError(f"{name} is out of range", f"give a number in [0, {MAX_STEPS}]")
    return count


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """The Gaussian mechanism on Poisson-sampled units, composed ``steps`` times.

    Parameters
    ----------
    sampling_rate : float
        Probability of each unit to be in a batch, in [0, 1], independent between units.
    noise_multiplier : float
        Standard deviation of the noise over the L2 bound on one unit's contribution; 0
        means no noise and an infinite epsilon.
    steps : int
        How many batches were drawn, at most ``MAX_STEPS``.

    Raises
    ------
    ConfigError
        If a value is not a finite number in its range.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        _set(self, "sampling_rate", _number("sampling_rate", self.sampling_rate, 0, 1))
        _set(self, "noise_multiplier", _noise(self.noise_multiplier))
        _set(self, "steps", _count("steps", self.steps))


@dataclass(frozen=True, slots=True)
class Gaussian:
    """The Gaussian mechanism on all units, ``count`` times (an evaluation sum, say).

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise over the L2 bound on one unit's contribution.
    count : int
        How many sums were released.

    Raises
    ------
    ConfigError
        If a value is not a finite number in its range.
    """

    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        _set(self, "noise_multiplier", _noise(self.noise_multiplier))
        _set(self, "count", _count("count", self.count))


@dataclass(frozen=True, slots=True)
class PoissonDiscreteGaussian:
    """Rounded sums of Poisson-sampled units plus shares of discrete Gaussian noise.

    Says what was drawn, in integers, and which continuous noise it is worth; an event that
    claims more than its shares give cannot be made. See `fedllm.privacy.discrete`.

    Parameters
    ----------
    sampling_rate, steps
        As of `PoissonGaussian`.
    noise_multiplier : float
        Of the continuous Gaussian that the shares are worth at least, sampled alike.
    shares : int
        Independent shares that make up the noise.
    share_deviation : int
        Standard deviation of one share, in grid steps.
    clipping_steps : float
        L2 bound on one unit's contribution before rounding, in grid steps.
    length : int
        Values of the vector.

    Raises
    ------
    ConfigError
        If a value is out of range, or the shares are worth less than ``noise_multiplier``.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    shares: int
    share_deviation: int
    clipping_steps: float
    length: int

    def __post_init__(self) -> None:
        _set(self, "sampling_rate", _number("sampling_rate", self.sampling_rate, 0, 1))
        _set(self, "noise_multiplier", _noise(self.noise_multiplier))
        for name in ("steps", "shares", "share_deviation", "length"):
            _set(self, name, _count(name, getattr(self, name)))
        _set(self, "clipping_steps", _number("clipping_steps", self.clipping_steps, 0, 1e15))
        if not 1 <= self.shares <= MAX_SHARES or self.length < 1:
            raise ConfigError(
                "discrete noise needs shares and values", f"use 1 to {MAX_SHARES} shares"
            )
        needed = share_deviation(
            self.noise_multiplier, self.shares, self.clipping_steps, self.length
        )
        if not needed <= self.share_deviation <= LARGEST_SHARE:
            raise ConfigError(
                f"{self.shares} shares of {self.share_deviation} grid steps are not worth a noise "
                f"multiplier of {self.noise_multiplier:g}",
                f"each share needs {needed} steps, at most {LARGEST_SHARE}",
            )


@dataclass(frozen=True, slots=True)
class NonPrivate:
    """A release without differential privacy: epsilon is infinite from here on."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What was spent, stated without saying how: the data were used (epsilon, delta)-privately.

    Composes with the rest by plain addition of both (Dwork and Roth 2014, theorem 3.16).

    Parameters
    ----------
    epsilon : float
        At least 0.
    delta : float
        In [0, 1].

    Raises
    ------
    ConfigError
        If a value is not a finite number in its range.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        _set(self, "epsilon", _number("epsilon", self.epsilon, 0, 1e6))
        _set(self, "delta", _number("delta", self.delta, 0, 1))


Event = PoissonGaussian | PoissonDiscreteGaussian | Gaussian | NonPrivate | Stated

_TYPES: dict[str, type[Event]] = {
    "poisson_gaussian": PoissonGaussian,
    "poisson_discrete_gaussian": PoissonDiscreteGaussian,
    "gaussian": Gaussian,
    "non_private": NonPrivate,
    "stated": Stated,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}


def _noise(value: object) -> float:
    return _number("noise_multiplier", value, 0, 1e150)


def _set(event: object, name: str, value: float) -> None:
    object.__setattr__(event, name, value)


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as plain values that `from_json` reads back to an equal event."""
    fields = {name: getattr(event, name) for name in type(event).__dataclass_fields__}
    return {"type": _NAMES[type(event)], **fields}


def from_json(value: object) -> Event:
    """Read an event; strict in both directions.

    Raises
    ------
    ConfigError
        If the type is unknown, a field is missing, unknown, of another type or out of range.
    """
    name = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(name, str) or name not in _TYPES:
        raise ConfigError(
            "unknown privacy event", f"known types: {', '.join(_TYPES)}; update fedllm"
        )
    kind = _TYPES[name]
    fields = {field: item for field, item in value.items() if field != "type"}
    if set(fields) != set(kind.__dataclass_fields__):
        raise ConfigError(
            f"privacy event '{name}' has the wrong fields",
            f"its fields are: {', '.join(kind.__dataclass_fields__) or 'none'}",
        )
    return kind(**fields)


@dataclass(frozen=True, slots=True)
class Folded:
    """Events added up: what an accountant needs, and nothing else.

    Attributes
    ----------
    sampled : tuple of (float, float, int)
        Distinct (sampling rate, noise multiplier, steps) with a rate below 1, sorted.
    mu_squared : float
        All unsampled Gaussians as one: ``sum(count / noise_multiplier**2)``. Composing
        Gaussians is exactly one Gaussian of that ``mu`` (Dong, Roth, Su 2019, cor. 3.3).
    non_private : bool
        Whether anything happened without noise.
    failure : float
        Probability that a bound on the noise or the sums of discrete noise does not hold; adds
        to delta.
    divergence : float
        Max divergence between discrete noise and the Gaussian that stands for it, over all
        steps; adds to epsilon.
    stated : float
        Sum of the epsilons that were only stated.
    stated_delta : float
        Sum of their deltas.
    """

    sampled: tuple[tuple[float, float, int], ...] = ()
    mu_squared: float = 0.0
    non_private: bool = False
    failure: float = 0.0
    divergence: float = 0.0
    stated: float = 0.0
    stated_delta: float = 0.0

    @property
    def steps(self) -> int:
        """All sampled steps together."""
        return sum(steps for _, _, steps in self.sampled)

    def within(self, other: Folded) -> bool:
        """Whether ``other`` holds everything that happened here, so that it costs no less."""
        if self.non_private and not other.non_private:
            return False
        steps = {(rate, noise): count for rate, noise, count in other.sampled}
        mine = (self.failure, self.divergence, self.stated, self.stated_delta)
        theirs = (other.failure, other.divergence, other.stated, other.stated_delta)
        less_exact = any(a > b for a, b in zip(mine, theirs, strict=True))
        return (
            not less_exact
            and self.mu_squared <= other.mu_squared
            and all(count <= steps.get((rate, noise), 0) for rate, noise, count in self.sampled)
        )


def discrete_failure(steps: int, values: int) -> float:
    """Return how probably a bound on rounding or on a sum fails in steps of discrete noise.

    Parameters
    ----------
    steps : int
        How many they are.
    values : int
        Of all their vectors together.
    """
    return steps * ROUNDING_FAILURE + values * MAX_SHARES * TAIL_PROBABILITY


def fold(events: Iterable[Event]) -> Folded:
    """Add up equal events, so that a thousand equal rounds are one composed event.

    The order of ``events`` changes nothing, not even a rounding error.
    """
    sampled: Counter[tuple[float, float]] = Counter()
    unsampled: Counter[float] = Counter()
    non_private = False
    inexact: list[int] = []
    values: list[int] = []
    stated: list[Stated] = []
    for event in events:
        if isinstance(event, NonPrivate):
            non_private = True
            continue
        if isinstance(event, Stated):
            stated.append(event)
            continue
        if isinstance(event, PoissonDiscreteGaussian):
            inexact.append(event.steps)
            values.append(event.steps * event.length)
        rate, count = (
            (1.0, event.count)
            if isinstance(event, Gaussian)
            else (event.sampling_rate, event.steps)
        )
        if count == 0 or rate == 0:
            continue
        if rate == 1:
            unsampled[event.noise_multiplier] += count
        else:
            sampled[rate, event.noise_multiplier] += count
    if any(noise < 1e-100 for noise in [*unsampled, *(noise for _, noise in sampled)]):
        non_private = True
        sampled.clear()
        unsampled.clear()
    squares = [count / noise**2 for noise, count in unsampled.items()]
    triples = tuple((rate, noise, count) for (rate, noise), count in sorted(sampled.items()))
    return Folded(
        triples,
        math.fsum(squares),
        non_private,
        failure=discrete_failure(sum(inexact), sum(values)),
        divergence=sum(values) * DIVERGENCE_PER_VALUE,
        stated=math.fsum(event.epsilon for event in stated),
        stated_delta=math.fsum(event.delta for event in stated),
    )
