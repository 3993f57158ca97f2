"""A whole site as the unit: its update of a round is clipped and noised as one contribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import nan

import numpy as np

from fedllm.errors import STOPPING, FedllmError
from fedllm.mechanisms.bounds import Room
from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.local import required
from fedllm.mechanisms.mechanism import (
    Contribution,
    Mechanism,
    Segment,
    SiteRound,
    Wording,
)
from fedllm.mechanisms.shares import SharedShares
from fedllm.mechanisms.sums import SumLaw, noise_variance, rounding_variance
from fedllm.mechanisms.work import LocalResult, LocalStatistics
from fedllm.privacy.accounting.events import PoissonGaussian
from fedllm.privacy.whole import private_update, site_deviation
from fedllm.randomness import RandomStream


class WholeSite(Mechanism):
    """Ordinary local steps, then one clipped and noised update (see `fedllm.privacy.whole`)."""

    name = "Gaussian noise on the whole update of a site"

    @property
    def wording(self) -> Wording:
        """Noise of each site on its whole update."""
        return Wording("local", "clipping_site", sampled=False)

    def sampling_rate(self, units: int) -> float:
        """Return 1: a site is in every round, whatever part of its records a step takes."""
        return 1.0

    @property
    def releases_per_round(self) -> int:
        """One update."""
        return 1

    def cost(self, units: int, length: int, noise_multiplier: float | None) -> Cost:
        """Charge the round's one release; see the base class."""
        return Cost((PoissonGaussian(1.0, required(noise_multiplier), 1),))

    @cached_property
    def _room(self) -> Room:
        """What one site's update needs, in clipping norms: clipping cuts it off before noise."""
        return Room(1.0, site_deviation(self._most_noise, 1.0, self.noise_share))

    def bounds(self, segments: Sequence[Segment]) -> tuple[float, ...]:
        """Return what a clipped and noised update stays within; see the base class."""
        return (self._config.privacy.clipping_norm * self._room.reach,) * len(segments)

    def sum_law(
        self, cohort: Sequence[int], number: int, noise: Sequence[float], length: int
    ) -> SumLaw | None:
        """Bound a sum of clipped updates, whatever the local steps were; see the base class."""
        used = self._used_noise(number, noise)
        if used is None or not self._opens_exactly:
            return None
        sites, reach = len(cohort), self._room.reach
        share = site_deviation(used, 1.0, self.noise_share) / reach
        rounding = rounding_variance(sites, self._config.encryption.bits)
        return SumLaw(sites / reach, sites * noise_variance(share) + rounding)

    def _used_noise(self, number: int, noise: Sequence[float]) -> float | None:
        """Return the largest noise multiplier that a site of this attempt has; None if unknown."""
        return self._chosen_noise(1.0, number, len(noise) - 1)

    def contribute(self, asked: SiteRound) -> Contribution:
        """Train without noise, then clip and noise the update as one unit.

        Training that fails counts as an update of nothing: a refusal would tell something of
        the site without any noise. The site's log has no loss then.
        """
        norm = self._config.privacy.clipping_norm
        result = self._trained(asked)
        update = private_update(
            result.update,
            norm,
            required(asked.noise_multiplier),
            self.noise_share,
            RandomStream.secure(),
        )
        levels = asked.quantise(update, self.random("rounding", *asked.purpose))
        return Contribution(levels, result.statistics, norm)

    def _trained(self, asked: SiteRound) -> LocalResult:
        work = asked.work
        settings = replace(self.settings(work.units, None), noise_multiplier=None)
        try:
            sampling = self.random("sampling", *asked.purpose)
            return work.train(settings, sampling, RandomStream.secure())
        except STOPPING:
            raise
        except BaseException as error:
            nothing = np.zeros(work.length, dtype=np.float32)
            # Other libraries' words may quote a record.
            why = error.message if isinstance(error, FedllmError) else type(error).__name__
            return LocalResult(
                nothing, LocalStatistics(nan, 0, 0, (), problem=why), settings.clipping_norm
            )


class WholeSiteShared(SharedShares, WholeSite):
    """The same with the noise shared among the sites."""

    @property
    def wording(self) -> Wording:
        """Noise in the sum of whole updates."""
        return replace(super().wording, noise="distributed")

    def _used_noise(self, number: int, noise: Sequence[float]) -> float | None:
        return noise[-1]

    @property
    def _least_noise(self) -> float:
        least = self._room.least_deviation(self._config.encryption.bits)
        return least / site_deviation(1.0, 1.0, self.noise_share)

    def bounds(self, segments: Sequence[Segment]) -> tuple[float, ...]:
        """Return what a clipped and noised update stays within; see the base class."""
        planned = required(self.announced_noise(1, ()))
        deviation = site_deviation(planned, 1.0, self.noise_share)
        self._room.require_fine(self._config.encryption.bits, deviation)
        return super().bounds(segments)

    def cost(self, units: int, length: int, noise_multiplier: float | None) -> Cost:
        """Charge the round's one release in both views; see the base class."""
        noise = required(noise_multiplier)
        alone = PoissonGaussian(1.0, noise * self.noise_share, 1)
        return Cost((PoissonGaussian(1.0, noise, 1),), (alone,))
