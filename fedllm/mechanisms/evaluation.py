"""Evaluation sums: one Gaussian mechanism on all units that a site holds out.

Each held-out unit gives a vector whose L2 norm has a bound, so adding or removing one moves the sum
by no more than that. The bound is a number beside the vector's length: where quality is told by
part, a vector has a block for each part and one unit fills few of them. Sites send the noised sum
of theirs in a round of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RunConfig
from fedllm.errors import ConfigError
from fedllm.mechanisms.bounds import Room
from fedllm.mechanisms.cost import Cost, noise_shares
from fedllm.privacy.accounting.calibration import solve_noise_multiplier
from fedllm.privacy.accounting.events import Event, Gaussian, NonPrivate
from fedllm.privacy.discrete import TAIL_DEVIATIONS
from fedllm.randomness import RandomStream


@dataclass(frozen=True)
class UnitVector:
    """What one held-out unit adds to a sum.

    Attributes
    ----------
    length : int
        Its values.
    norm : float
        Largest L2 norm, whatever the unit holds; noise is scaled to it, and vectors are cut to it.
    """

    length: int
    norm: float


class EvaluationSums:
    """How the evaluations of a run are private; every run has one, most with nothing to do.

    Parameters
    ----------
    config : RunConfig
        What the coordinator asks for.
    """

    # Far above any site's sum; with 24 bits a level is then 1/32 of a record.
    LARGEST_SUM = float(2**18)
    BITS = 24

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    @cached_property
    def rounds(self) -> tuple[int, ...]:
        """The rounds after which the sites evaluate: every k-th one, and the last."""
        every, last = self._config.evaluation.every, self._config.rounds.count
        if not every:
            return ()
        return tuple(
            number for number in range(1, last + 1) if number % every == 0 or number == last
        )

    @property
    def event(self) -> Event:
        """What one evaluation does to a unit, in the eyes of who sees the sum.

        Raises
        ------
        ConfigError
            If the run does not evaluate at the sites.
        """
        count = len(self.rounds)
        if not count:
            raise ConfigError("the run does not evaluate at the sites", "set evaluation.every")
        if not self._config.private:
            return NonPrivate()
        privacy, asked = self._config.privacy, self._config.evaluation
        return Gaussian(_noise_multiplier(asked.epsilon, privacy.delta, count))

    @property
    def cost(self) -> Cost:
        """What one evaluation costs a unit, in both views; raises as `event` does."""
        event = self.event
        if self._config.privacy.noise == "local" or not isinstance(event, Gaussian):
            return Cost((event,))
        alone = Gaussian(event.noise_multiplier * self._noise_share, event.count)
        return Cost((event,), (alone,))

    @property
    def planned(self) -> tuple[Event, ...]:
        """What all evaluations of a private run will have cost; nothing without any."""
        count = len(self.rounds)
        if not count or not self._config.private:
            return ()
        event = self.event
        return (
            (Gaussian(event.noise_multiplier, count),) if isinstance(event, Gaussian) else (event,)
        )

    def deviation(self, norm: float) -> float:
        """Return the standard deviation of one site's noise on each sum.

        ``norm`` bounds what one unit adds, as of `UnitVector`.
        """
        event = self.event
        if not isinstance(event, Gaussian):
            return 0.0
        return event.noise_multiplier * self._noise_share * norm

    def room(self, norm: float) -> Room:
        """Return what is left for sums beside the noise.

        Raises
        ------
        ConfigError
            If the noise that hides ``norm`` is too large for the levels of sums, or too small.
        """
        deviation = self.deviation(norm)
        room = Room(self.LARGEST_SUM - TAIL_DEVIATIONS * deviation, deviation)
        if room.signal < self.LARGEST_SUM / 4:
            without = ", or leave out evaluation.parts" if self._config.evaluation.parts else ""
            raise ConfigError(
                "the noise leaves no room for the sums of evaluation at the sites",
                "raise evaluation.epsilon, or evaluate less often (evaluation.every)" + without,
            )
        if self._noise_share < 1 and 0 < deviation < room.least_deviation(self.BITS):
            raise ConfigError(
                "the noise of evaluation at the sites is so small that rounding would take some "
                "of it away",
                "lower evaluation.epsilon",
            )
        return room

    def total(
        self, vectors: Iterable[NDArray[np.float64]], unit: UnitVector
    ) -> NDArray[np.float64]:
        """Add up units' vectors, (L,), without noise.

        What is cut to `UnitVector.norm` is the very vector that is added: whatever a task, or a
        unit with records in several parts, made of it, the noise hides it. One that is not finite
        adds nothing.
        """
        # Torch comes with it, and plans do without.
        from fedllm.privacy.dpsgd import clipped

        total = np.zeros(unit.length)
        for vector in vectors:
            total += clipped(vector, unit.norm).values
        return total

    def noised(
        self, total: NDArray[np.float64], norm: float, noise: RandomStream
    ) -> NDArray[np.float64]:
        """Return a site's sums (L,), cut off to leave room, with its part of the noise.

        Parameters
        ----------
        total : float64 array (L,)
            As `total` returns it.
        norm : float
            What no unit's vector in it is longer than.
        noise : RandomStream
            Cryptographic for a private run.
        """
        room = self.room(norm)
        return room.noised(total, room.deviation, noise) * self.LARGEST_SUM

    @property
    def _noise_share(self) -> float:
        return 1.0 / sqrt(noise_shares(self._config))


@lru_cache(maxsize=64)
def _noise_multiplier(epsilon: float, delta: float, count: int) -> float:
    return solve_noise_multiplier(epsilon, delta, 1.0, count)
