"""Local noise: each site's update is private by itself (DP-SGD, Abadi et al. 2016)."""

from __future__ import annotations

from dataclasses import replace

from fedllm.errors import ConfigError
from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.mechanism import Contribution, Mechanism, SiteRound, Wording
from fedllm.mechanisms.work import LocalSettings
from fedllm.privacy.accounting.events import PoissonGaussian


class LocalNoise(Mechanism):
    """Every step of every site carries the whole noise, whoever sees the update.

    Each site chooses its noise by its own number of records, so that every site spends exactly
    the run's epsilon. That number is rounded down and announced: noise can be measured, and must
    not tell more than what was said. The clipping norm may follow the gradients
    (``privacy.clipping_quantile``, see `fedllm.privacy.adaptive`).
    """

    @property
    def wording(self) -> Wording:
        """Noise at each site."""
        moving = self._config.privacy.clipping_quantile is not None
        return Wording("local", "clipping_start" if moving else "clipping", sampled=True)

    def announced_units(self, units: int) -> int:
        """Return the size with its three leading binary digits kept: at most a fifth less."""
        dropped = max(0, units.bit_length() - 3)
        return units >> dropped << dropped

    def sampling_rate(self, units: int) -> float:
        """Return the rate that follows from what a site announces; see the base class."""
        return super().sampling_rate(self.announced_units(units))

    def settings(
        self, units: int, noise_multiplier: float | None, clipping_norm: float | None = None
    ) -> LocalSettings:
        """Return what a site does in one round; see the base class."""
        settings = super().settings(self.announced_units(units), noise_multiplier, clipping_norm)
        quantile = self._config.privacy.clipping_quantile if noise_multiplier else None
        return replace(settings, clipping_quantile=quantile)

    def cost(self, units: int, length: int, noise_multiplier: float | None) -> Cost:
        """Charge each step of the round; see the base class."""
        noise = required(noise_multiplier)
        steps = self.releases_per_round
        return Cost((PoissonGaussian(self.sampling_rate(units), noise, steps),))

    def contribute(self, asked: SiteRound) -> Contribution:
        """Take DP-SGD steps and quantise the update."""
        noise = required(asked.noise_multiplier)
        return self._noised_steps(
            self.settings(asked.announced_units, noise, asked.clipping_norm), asked
        )


def required(noise_multiplier: float | None) -> float:
    """Return the noise multiplier of a private run.

    Raises
    ------
    ConfigError
        If there is none: nothing is released without noise.
    """
    if noise_multiplier is None:
        raise ConfigError("a private run has no noise multiplier", "set privacy.epsilon")
    return noise_multiplier
