"""No privacy: training as anyone does it, which promises nothing and can be repeated exactly."""

from __future__ import annotations

from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.local import rounded_size
from fedllm.mechanisms.mechanism import Contribution, Mechanism, SiteRound, Wording
from fedllm.privacy.accounting.events import NonPrivate
from fedllm.randomness import RandomStream


class NoPrivacy(Mechanism):
    """Updates without clipping and noise; the ledger says that epsilon is infinite from here on."""

    name = "none"

    @property
    def wording(self) -> Wording:
        """Nothing is noised."""
        return Wording("none", "clipping", sampled=False)

    def announced_units(self, units: int) -> int:
        """Return the size rounded down where a site's rank follows from it; see the base class."""
        return rounded_size(units) if self._config.lora.ranks else 0

    def _divisor(self, expected: float) -> float:
        # A run that sends one gradient a round is the same run, with and without noise.
        sums = self._config.privacy.noise == "distributed" and self._config.unit != "site"
        return float(self._config.training.batch_size) if sums else expected

    def cost(self, units: int, length: int, noise_multiplier: float | None) -> Cost:
        """Say that records were used without differential privacy."""
        return Cost((NonPrivate(),))

    def random(self, *purpose: str | int) -> RandomStream:
        """Return the same numbers for the same seed, site and round."""
        return RandomStream.seeded(self._config.seed, *purpose)

    def contribute(self, asked: SiteRound) -> Contribution:
        """Take ordinary steps and quantise the update."""
        return self._noised_steps(self.settings(asked.work.units, None), asked)
