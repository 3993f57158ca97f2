"""Discrete shared noise: integers whose sum carries exactly the noise that is accounted.

The steps of the grid are the levels of the run's quantiser, so that masks, encryption, sums and
the coordinator's step are those of every other run; see `fedllm.privacy.discrete`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, log10, sqrt

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RunConfig
from fedllm.errors import ConfigError, TrainingError
from fedllm.mechanisms.bounds import largest_sum
from fedllm.mechanisms.cost import Cost, noise_shares
from fedllm.mechanisms.local import required
from fedllm.mechanisms.mechanism import Contribution, Segment, SiteRound
from fedllm.mechanisms.shared import SharedNoise
from fedllm.mechanisms.sums import SumLaw, rounding_variance
from fedllm.privacy.accounting.events import (
    Event,
    PoissonDiscreteGaussian,
    PoissonGaussian,
    discrete_failure,
)
from fedllm.privacy.discrete import (
    TAIL_DEVIATIONS,
    discrete_gaussian,
    round_at_random,
    sensitivity,
    share_deviation,
    worth,
)
from fedllm.randomness import RandomStream

# More noise than this for the same privacy is a grid too coarse to be meant.
_LARGEST_LOSS = 1.25
# Part of delta that is left for what discrete noise may fail by.
_LEFT_FOR_FAILURES = 1e-6


class DiscreteSharedNoise(SharedNoise):
    """Shared noise, added as integers after rounding."""

    name = "DP-SGD with discrete Gaussian noise"

    def grid(self, length: int) -> IntegerGrid:
        """Return the run's grid for updates of ``length`` values.

        Raises
        ------
        ConfigError
            If so few bits are asked for that rounding would cost more than a quarter of the
            noise, or if delta is so small that discrete noise might fail more often.
        """
        grid = _make_grid(self._config, self._most_noise, length)
        _require_rare_failures(self._config, self.releases_per_round, length)
        return grid

    @property
    def _least_noise(self) -> float:
        # A share always spans enough steps of the grid; see `share_deviation`.
        return 0.0

    @property
    def _target_delta(self) -> float:
        return self._config.privacy.delta * (1 - _LEFT_FOR_FAILURES)

    def _as_gaussian(self, event: Event) -> Event:
        if isinstance(event, PoissonDiscreteGaussian):
            return PoissonGaussian(event.sampling_rate, event.noise_multiplier, event.steps)
        return event

    def cost(self, units: int, length: int, noise_multiplier: float | None) -> Cost:
        """Charge the integers that are drawn, in both views; see the base class."""
        self.require_size(units)
        noise, rate, grid = required(noise_multiplier), self.sampling_rate(units), self.grid(length)
        return Cost((grid.event(rate, noise),), (grid.event(rate, noise, alone=True),))

    def bounds(self, segments: Sequence[Segment]) -> tuple[float, ...]:
        """Return the bound that makes the quantiser's levels the grid; see the base class."""
        return (self.grid(sum(segment.size for segment in segments)).bound,) * len(segments)

    def sum_law(
        self, cohort: Sequence[int], number: int, noise: Sequence[float], length: int
    ) -> SumLaw | None:
        """Bound a sum of rounded gradients and integer shares; see the base class."""
        grid = self.grid(length)
        share = grid.share(noise[-1]) / grid.half
        rounding = rounding_variance(len(cohort), self._config.encryption.bits)
        signal = self._most_units(len(cohort)) * grid.clipping_steps / grid.half
        return SumLaw(signal, len(cohort) * share**2 + rounding)

    def contribute(self, asked: SiteRound) -> Contribution:
        """Sum clipped gradients, round the sum, then add the site's integer share of the noise."""
        work, noise = asked.work, required(asked.noise_multiplier)
        settings = self.settings(work.units, noise)
        total, statistics = work.gradient_sum(settings, self.random("sampling", *asked.purpose))
        norm = settings.clipping_norm
        levels = self.grid(work.length).noised_levels(total, norm, noise, RandomStream.secure())
        return Contribution(levels, statistics, norm)


@dataclass(frozen=True)
class IntegerGrid:
    """Integers that stand for sums of gradients; the same at all parties, from public settings.

    Attributes
    ----------
    half : int
        Largest integer a site may send, and minus the smallest; level ``half`` stands for 0.
    clipping_steps : float
        The clipping norm in grid steps.
    bound : float
        Bound on an update's coordinate that makes the quantiser's levels this grid.
    shares : int
        Sites whose shares make up the noise.
    length : int
        Values of the vector.
    """

    half: int
    clipping_steps: float
    bound: float
    shares: int
    length: int

    def event(
        self, sampling_rate: float, noise_multiplier: float, alone: bool = False
    ) -> PoissonDiscreteGaussian:
        """Return what one step costs in the eyes of who sees sums, or everyone else together."""
        share = self.share(noise_multiplier)
        shares = 1 if alone else self.shares
        worth_of = worth(share, 1, self.clipping_steps, self.length) if alone else noise_multiplier
        return PoissonDiscreteGaussian(
            sampling_rate, worth_of, 1, shares, share, self.clipping_steps, self.length
        )

    def share(self, noise_multiplier: float) -> int:
        """Return the standard deviation of one site's noise, in grid steps."""
        return share_deviation(noise_multiplier, self.shares, self.clipping_steps, self.length)

    def noised_levels(
        self,
        total: NDArray[np.float64],
        clipping_norm: float,
        noise_multiplier: float,
        random: RandomStream,
    ) -> NDArray[np.uint64]:
        """Round minus a sum of clipped gradients, add this site's share, and shift to levels.

        Parameters
        ----------
        total : float64 (P,)
            From `clipped_gradient_sum`.
        clipping_norm : float
            That it was clipped with.
        noise_multiplier : float
            Of the whole noise.
        random : RandomStream
            ``RandomStream.secure()`` outside tests.

        Returns
        -------
        uint64 (P,)
            From 0 to twice ``half``.

        Raises
        ------
        ConfigError
            If the noise leaves no room for gradients.
        TrainingError
            If a value does not fit; that happens once in far more than 1e30 sums.
        """
        deviation = self.share(noise_multiplier)
        room = self.half - TAIL_DEVIATIONS * deviation - 1
        if room < self.half // 100:
            raise ConfigError(
                "the noise leaves no room for gradients in the levels of this run",
                "raise encryption.bits or training.batch_size, or ask for more epsilon",
            )
        # Cutting values off before the noise moves no unit's contribution further.
        steps = np.clip(total * (-self.clipping_steps / clipping_norm), -room, room)
        whole = round_at_random(steps, random) + discrete_gaussian(random, len(total), deviation)
        if np.abs(whole).max(initial=0) > self.half:
            raise TrainingError("a noised sum does not fit its levels", "repeat the round")
        return (whole + self.half).astype(np.uint64)


def _require_rare_failures(config: RunConfig, releases: int, length: int) -> None:
    """Refuse a run whose noise may fail with more than the part of delta that is left for it.

    Its epsilon would have no bound at that delta, whatever the noise.
    """
    delta = config.privacy.delta
    steps = config.rounds.count * releases
    failure = discrete_failure(steps, steps * length)
    if failure > _LEFT_FOR_FAILURES * delta:
        least = failure / _LEFT_FOR_FAILURES
        unit = 10.0 ** floor(log10(least))
        raise ConfigError(
            f"privacy.delta = {delta:g} is too small for discrete noise: its bounds fail with "
            f"probability {failure:.2g} in this run",
            f"set privacy.delta = {ceil(least / unit) * unit:g} or more, or "
            "privacy.distribution = 'gaussian'",
        )


@lru_cache(maxsize=16)
def _make_grid(config: RunConfig, largest_noise: float, length: int) -> IntegerGrid:
    """Make a grid from public settings.

    A batch of the expected size whose gradients all point the same way fits, and noise at its
    largest beside it.
    """
    norm, batch = config.privacy.clipping_norm, config.training.batch_size
    shares = noise_shares(config)
    noise = (TAIL_DEVIATIONS + 1) * _LARGEST_LOSS * largest_noise * norm / sqrt(shares)
    reach = norm * largest_sum(batch) + noise
    half = (1 << (config.encryption.bits - 1)) - 1
    clipping_steps = norm * half / reach
    if sensitivity(clipping_steps, length) > _LARGEST_LOSS * clipping_steps:
        raise ConfigError(
            f"encryption.bits = {config.encryption.bits} is too coarse for discrete noise on "
            f"{length} values",
            "set encryption.bits = 20, or more for large batches or adapters",
        )
    return IntegerGrid(half, clipping_steps, reach / batch, shares, length)
