"""Shared noise: the sum of a round is private, and as good as if the records had been pooled."""

from __future__ import annotations

from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.local import required
from fedllm.mechanisms.mechanism import Contribution, SharedShares, SiteRound, Wording
from fedllm.privacy.accounting.events import PoissonGaussian


class SharedNoise(SharedShares):
    """One DP-SGD step a round; each site adds its share of the noise.

    Nobody can open a single update. The ledger records two costs: for those who see sums, and
    for everyone else colluding, who know all shares but the site's own.
    """

    @property
    def wording(self) -> Wording:
        """Noise in the sum."""
        return Wording("distributed", "clipping", sampled=True)

    def _divisor(self, expected: float) -> float:
        # The coordinator learns the sum; what it is divided by must not depend on private sizes.
        return float(self._config.training.batch_size)

    def cost(self, units: int, length: int, noise_multiplier: float | None) -> Cost:
        """Charge the round's step, in both views; see the base class."""
        noise, rate = required(noise_multiplier), self.sampling_rate(units)
        steps = self.releases_per_round
        alone = PoissonGaussian(rate, noise * self.noise_share, steps)
        return Cost((PoissonGaussian(rate, noise, steps),), (alone,))

    def contribute(self, asked: SiteRound) -> Contribution:
        """Send one clipped, noised gradient."""
        noise = required(asked.noise_multiplier)
        return self._noised_steps(self.settings(asked.work.units, noise), asked)
