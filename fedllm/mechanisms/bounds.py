"""How large a site's update can get, from public settings alone; the quantiser's range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedllm.errors import ConfigError
from fedllm.mechanisms.work import ADAM_BETA_1, ADAM_BETA_2, LocalSettings
from fedllm.privacy.discrete import SMALLEST_SHARE, TAIL_DEVIATIONS
from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream

if TYPE_CHECKING:
    from fedllm.mechanisms.mechanism import Segment

_DEVIATIONS = 6.0


@dataclass(frozen=True)
class Room:
    """Room for a site's sum, and beside it for its noise, whatever the sum is.

    A share of the noise that a quantiser cuts off is missing in the sum of all sites, so the
    sum is cut off before it has noise. Putting each value into an interval is a projection: it
    brings no two vectors further apart, so neighbours' sums stay as near as clipping left them.
    Noise leaves its own room once in more than 1e55 values (`TAIL_DEVIATIONS`), for which no
    event has a place: all values of all rounds and sites of a thousand of the largest runs that
    can be configured add less than 1e-34 times 1 + exp(epsilon) to delta.

    Attributes
    ----------
    signal : float
        Largest magnitude of a value without noise; same unit as ``deviation``.
    deviation : float
        Largest standard deviation of one site's noise.
    """

    signal: float
    deviation: float

    @property
    def reach(self) -> float:
        """Largest magnitude of a value with its noise; what the quantiser's levels span."""
        return self.signal + TAIL_DEVIATIONS * self.deviation

    def least_deviation(self, bits: int) -> float:
        """Return the smallest share of the noise that may be rounded to levels of ``bits`` bits.

        Sites round before their shares are added up. With shares of at least four levels that
        takes nothing away: given the sum, the parts by which rounding moved it are the same for
        all values under the noise, up to 1e-65 (see docs/privacy-accounting.md).
        """
        return SMALLEST_SHARE * 2 * self.reach / ((1 << bits) - 2)

    def require_fine(self, bits: int, deviation: float, first: str = "") -> None:
        """Refuse levels on which one share of the noise would be too small.

        ``first`` begins the remedy: what to look at before more bits are sent.

        Raises
        ------
        ConfigError
            Says how many bits are enough.
        """
        least = self.least_deviation(bits)
        if deviation >= least:
            return
        enough = bits + ceil(log2(least / deviation) + 1e-3)
        remedy = "ask for less epsilon or a smaller training.batch_size, or use local noise"
        if enough <= 24:
            remedy = f"{first}set encryption.bits = {enough}"
        raise ConfigError(
            f"encryption.bits = {bits} is too coarse for this run's noise: one site's share must "
            f"span {SMALLEST_SHARE} levels, so that rounding takes nothing of it away",
            remedy,
        )

    def noised(
        self, values: NDArray[np.float64], deviation: float, noise: RandomStream
    ) -> NDArray[np.float64]:
        """Cut values (P,) off, add one site's noise, and return them as parts of `reach`.

        Raises
        ------
        ConfigError
            If there is no room for such noise.
        """
        if deviation > self.deviation * (1 + 1e-9):
            raise ConfigError("the noise does not fit the run's levels", "ask for more epsilon")
        kept = np.clip(values, -self.signal, self.signal)
        return (kept + gaussian_noise(noise, len(values), deviation)) / self.reach


def largest_sum(batch_size: float) -> float:
    """Return what a batch's clipped gradients add up to at most, in clipping norms.

    All of them pointing the same way, and six standard deviations of the batch's size.
    """
    return batch_size + _DEVIATIONS * sqrt(batch_size)


def update_bounds(settings: LocalSettings, segments: Sequence[Segment]) -> tuple[float, ...]:
    """Return a bound on the absolute value of one update coordinate, for each segment.

    Nothing but public settings enters, so the bound tells nothing about records. For updates
    that need no noise but their own: what the quantiser cuts off was private before.

    Adam: a hard bound, whatever the gradients. SGD with privacy: every record's gradient
    pointing the same way, plus six standard deviations of batch size and noise; beyond that
    (once in about 1e9 values) the quantiser saturates. SGD without privacy has no bound;
    ``clipping_norm`` stands for the largest mean gradient of a coordinate. With 16 bits the
    rounding of a typical step is then still some hundred times smaller than the noise.
    """
    step = _adam_steps(settings.steps) if settings.optimizer == "adam" else sgd_reach(settings)
    rates = {"lora": settings.learning_rate, "head": settings.head_learning_rate}
    return tuple(step * rates[segment.group] for segment in segments)


def _adam_steps(steps: int) -> float:
    """Bound the sum of |mean| / sqrt(square) over the steps, by Cauchy and Schwarz."""
    total = 0.0
    for step in range(1, steps + 1):
        age = np.arange(step, dtype=np.float64)
        mean = (1 - ADAM_BETA_1) * ADAM_BETA_1**age / (1 - ADAM_BETA_1**step)
        square = (1 - ADAM_BETA_2) * ADAM_BETA_2**age / (1 - ADAM_BETA_2**step)
        total += sqrt(float((mean**2 / square).sum()))
    return total


def sgd_reach(settings: LocalSettings) -> float:
    """Return the bound of a value after steps of SGD, over the learning rate."""
    if settings.noise_multiplier is None:
        return settings.steps * settings.clipping_norm
    expected = settings.expected_batch_size
    deviation = settings.noise_multiplier * settings.clipping_norm / expected
    signal = settings.clipping_norm * largest_sum(expected) / expected
    return settings.steps * signal + _DEVIATIONS * sqrt(settings.steps) * deviation
