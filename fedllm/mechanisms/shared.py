"""Shared noise: the sum of a round is private, and as good as if the records had been pooled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from fedllm.errors import RefusedError
from fedllm.mechanisms.bounds import Room, largest_sum
from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.local import largest_units, required
from fedllm.mechanisms.mechanism import Contribution, Segment, SiteRound, Wording
from fedllm.mechanisms.shares import SharedShares
from fedllm.mechanisms.sums import SumLaw, most_drawn, rounding_variance
from fedllm.privacy.accounting.events import PoissonGaussian
from fedllm.randomness import RandomStream

# A site whose batches are larger would have what its records agree on cut off.
_LARGEST_BATCH = 4
_LOWER_BATCH = (
    "lower training.batch_size to the records that a site draws in a round, if it is more; else "
)


class SharedNoise(SharedShares):
    """One DP-SGD step a round; each site adds its share of the noise.

    Nobody can open a single update. The ledger records two costs: for those who see sums, and
    for everyone else colluding, who know all shares but the site's own.
    """

    name = "DP-SGD with Gaussian noise"

    @property
    def wording(self) -> Wording:
        """Noise in the sum."""
        return Wording("distributed", "clipping", sampled=True)

    def _divisor(self, expected: float) -> float:
        # The coordinator learns the sum; what it is divided by must not depend on private sizes.
        return float(self._config.training.batch_size)

    def cost(self, units: int, length: int, noise_multiplier: float | None) -> Cost:
        """Charge the round's step, in both views; see the base class."""
        self.require_size(units)
        noise, rate = required(noise_multiplier), self.sampling_rate(units)
        steps = self.releases_per_round
        alone = PoissonGaussian(rate, noise * self.noise_share, steps)
        return Cost((PoissonGaussian(rate, noise, steps),), (alone,))

    def require_size(self, units: int) -> None:
        """Refuse a run in which this site might be cut off most of the time.

        ``units`` is rounded down; what counts is the largest size that it may stand for, which
        `_most_units` relies on.

        Raises
        ------
        RefusedError
            Says nothing of how many records there are.
        """
        batch = self._config.training.batch_size
        largest = largest_units(units, self._held_out)
        if self.sampling_rate(units) * largest > _LARGEST_BATCH * batch:
            raise RefusedError(
                f"this site's batches might be more than {_LARGEST_BATCH} times as large as "
                f"training.batch_size = {batch}, and what its records agree on would be cut off",
                "the coordinator raises training.batch_size to what the largest site expects, or "
                "lowers training.sampling_rate",
            )

    @cached_property
    def _room(self) -> Room:
        """What one site's sum needs, in clipping norms."""
        batch = self._config.training.batch_size
        return Room(largest_sum(batch), self._most_noise * self.noise_share)

    @property
    def _least_noise(self) -> float:
        return self._room.least_deviation(self._config.encryption.bits) / self.noise_share

    def bounds(self, segments: Sequence[Segment]) -> tuple[float, ...]:
        """Return the bounds of a sum with its noise, as the coordinator steps by it."""
        planned = required(self.announced_noise(1, ())) * self.noise_share
        self._room.require_fine(self._config.encryption.bits, planned, _LOWER_BATCH)
        settings = self.public_settings
        norm = settings.clipping_norm * self._room.reach / settings.expected_batch_size
        rates = {"lora": settings.learning_rate, "head": settings.head_learning_rate}
        return tuple(norm * rates[segment.group] for segment in segments)

    def sum_law(
        self, cohort: Sequence[int], number: int, noise: Sequence[float], length: int
    ) -> SumLaw | None:
        """Bound a sum of clipped gradients and shares; see the base class."""
        share = noise[-1] * self.noise_share / self._room.reach
        rounding = rounding_variance(len(cohort), self._config.encryption.bits)
        signal = self._most_units(len(cohort)) / self._room.reach
        return SumLaw(signal, len(cohort) * share**2 + rounding)

    def _most_units(self, sites: int) -> float:
        """Return how many units the batches of an honest cohort have together; see `require_size`.

        Sites say nothing of their sizes, so each may be as large as is allowed.
        """
        expected = float(sites * _LARGEST_BATCH * self._config.training.batch_size)
        return most_drawn(expected, expected * (1 - self.sampling_rate(1)))

    def contribute(self, asked: SiteRound) -> Contribution:
        """Sum clipped gradients, cut the sum off, and only then add the site's share.

        The adapter that the coordinator sent and its learning rates do not touch what the
        noise is added to.
        """
        work, noise = asked.work, required(asked.noise_multiplier)
        settings = self.settings(work.units, noise)
        total, statistics = work.gradient_sum(settings, self.random("sampling", *asked.purpose))
        norm = settings.clipping_norm
        # With the sign of a descent.
        parts = self._room.noised(-total / norm, noise * self.noise_share, RandomStream.secure())
        levels = asked.quantise_parts(parts, self.random("rounding", *asked.purpose))
        return Contribution(levels, statistics, norm)
