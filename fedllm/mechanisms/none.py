"""No privacy: training as anyone does it, which promises nothing and can be repeated exactly."""

from __future__ import annotations

from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.mechanism import Contribution, Mechanism, Purpose, Quantise, Wording
from fedllm.mechanisms.work import LocalWork
from fedllm.privacy.accounting.events import NonPrivate
from fedllm.randomness import RandomStream


class NoPrivacy(Mechanism):
    """Updates without clipping and noise; the ledger says that epsilon is infinite from here on."""

    @property
    def wording(self) -> Wording:
        """Nothing is noised."""
        return Wording("none", "clipping", sampled=False)

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

    def contribute(
        self,
        work: LocalWork,
        noise_multiplier: float | None,
        quantise: Quantise,
        purpose: Purpose,
        clipping_norm: float | None = None,
    ) -> Contribution:
        """Take ordinary steps and quantise the update."""
        return self._noised_steps(self.settings(work.units, None), work, quantise, purpose)
