"""Local noise: each site's update is private by itself (DP-SGD, Abadi et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, log2, sqrt

from fedllm.errors import ConfigError
from fedllm.mechanisms.bounds import sgd_reach
from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.mechanism import Contribution, Mechanism, SiteRound, Wording
from fedllm.mechanisms.sums import SumLaw, most_drawn, noise_variance, rounding_variance
from fedllm.mechanisms.work import LocalSettings
from fedllm.privacy.accounting.events import PoissonGaussian


class LocalNoise(Mechanism):
    """Every step of every site carries the whole noise, whoever sees the update.

    Each site chooses its noise by its own number of records, so that every site spends exactly
    the run's epsilon. That number is rounded down and announced: noise can be measured, and must
    not tell more than what was said. The clipping norm may follow the gradients
    (``privacy.clipping_quantile``, see `fedllm.privacy.adaptive`).
    """

    name = "DP-SGD with Gaussian noise"

    @property
    def wording(self) -> Wording:
        """Noise at each site."""
        moving = self._config.privacy.clipping_quantile is not None
        return Wording("local", "clipping_start" if moving else "clipping", sampled=True)

    def announced_units(self, units: int) -> int:
        """Return the size rounded down, see `rounded_size`."""
        return rounded_size(units)

    def sampling_rate(self, units: int) -> float:
        """Return the rate that follows from what a site announces; see the base class."""
        return super().sampling_rate(self.announced_units(units))

    def _divisor(self, expected: float) -> float:
        # Divided by fewer units, the noise of a site that says it is small would be more than
        # that of all others together, and hide whatever else it sends. Adam is blind to this.
        training = self._config.training
        least = training.batch_size / 2 if training.optimizer == "sgd" else 0.0
        return max(expected, least)

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

    def sum_law(
        self, cohort: Sequence[int], number: int, noise: Sequence[float], length: int
    ) -> SumLaw | None:
        """Bound a sum of SGD steps; see the base class.

        Adam divides each value by its own size, so that honest records may bring every value
        near its bound: there is no law for it.
        """
        settings = self.public_settings
        if settings.optimizer == "adam" or not self._opens_exactly:
            return None
        rates = [self.sampling_rate(size) for size in cohort]
        most = self._most_chosen(rates, number, len(noise) - 1)
        if most is None:
            return None
        # The bound of a value, in clipping norms times the learning rate, as all here.
        bound = sgd_reach(settings) / settings.clipping_norm
        # What one record adds at most, at each site.
        adds = [1 / self._divisor(rate * size) for rate, size in zip(rates, cohort, strict=True)]
        expected = variance = noises = 0.0
        for size, rate, one in zip(cohort, rates, adds, strict=True):
            drawn = settings.steps * largest_size(size, self._held_out) * rate
            expected += drawn * one
            variance += drawn * (1 - rate) * one**2
            noises += noise_variance(sqrt(settings.steps) * most[_octave(rate)] * one / bound)
        signal = most_drawn(expected, variance, max(adds)) / bound
        rounding = rounding_variance(len(cohort), self._config.encryption.bits)
        return SumLaw(signal, noises + rounding)

    def _most_chosen(
        self, rates: Sequence[float], number: int, attempts: int
    ) -> dict[int, float] | None:
        """Return the most noise that sites choose, by the octave of their sampling rates.

        More than a site's own, since a higher rate takes more; one for each octave, since to
        find it takes seconds. None where some site could not go on.
        """
        found: dict[int, float] = {}
        for rate in sorted(set(rates), reverse=True):
            if _octave(rate) not in found:
                most = self._chosen_noise(rate, number, attempts)
                if most is None:
                    return None
                found[_octave(rate)] = most
        return found

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


def _octave(rate: float) -> int:
    """Return the n of the powers 2**(n - 1) and 2**n that a rate is between."""
    return ceil(log2(rate))


def rounded_size(units: int) -> int:
    """Return a size with its three leading binary digits kept: at most a fifth less."""
    dropped = max(0, units.bit_length() - 3)
    return units >> dropped << dropped


def largest_size(announced: int, held_out: float) -> int:
    """Return how many units a site trains on at most, by what it announced.

    Parameters
    ----------
    announced : int
        `rounded_size` of a rounded size less the part that is held out.
    held_out : float
        That part.
    """
    if not held_out:
        return _largest_before_rounding(announced)
    return largest_units(_largest_before_rounding(announced), held_out)


def largest_units(units: int, held_out: float) -> int:
    """Return the same by what a site counts as its units: not rounded once more.

    How many exactly are held out is chance, so perhaps none.
    """
    return _largest_before_rounding(int((units + 1) / (1.0 - held_out)) if held_out else units)


def _largest_before_rounding(size: int) -> int:
    return size + (1 << max(0, size.bit_length() - 3)) - 1
