"""How large a site's update can get, from public settings alone; the quantiser's range."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from fedllm.mechanisms.work import ADAM_BETA_1, ADAM_BETA_2, LocalSettings

if TYPE_CHECKING:
    from fedllm.mechanisms.mechanism import Segment

_DEVIATIONS = 6.0


def update_bounds(settings: LocalSettings, segments: Sequence[Segment]) -> tuple[float, ...]:
    """Return a bound on the absolute value of one update coordinate, for each segment.

    Nothing but public settings enters, so the bound tells nothing about records.

    Adam: a hard bound, whatever the gradients. SGD with privacy: every record's gradient
    pointing the same way, plus six standard deviations of batch size and noise; beyond that
    (once in about 1e9 values) the quantiser saturates. SGD without privacy has no bound;
    ``clipping_norm`` stands for the largest mean gradient of a coordinate. With 16 bits the
    rounding of a typical step is then still some hundred times smaller than the noise.
    """
    step = _adam_steps(settings.steps) if settings.optimizer == "adam" else _sgd_steps(settings)
    rates = {"lora": settings.learning_rate, "head": settings.head_learning_rate}
    return tuple(step * rates[segment.group] for segment in segments)


def whole_update_bounds(clipping_norm: float, deviation: float, segments: int) -> tuple[float, ...]:
    """Return the same for updates that are clipped and noised as a whole.

    Parameters
    ----------
    clipping_norm : float
        Largest norm, so also the largest value, before noise.
    deviation : float
        Standard deviation of one site's noise.
    segments : int
        How many segments an update has.
    """
    return (clipping_norm + _DEVIATIONS * deviation,) * segments


def _adam_steps(steps: int) -> float:
    """Bound the sum of |mean| / sqrt(square) over the steps, by Cauchy and Schwarz."""
    total = 0.0
    for step in range(1, steps + 1):
        age = np.arange(step, dtype=np.float64)
        mean = (1 - ADAM_BETA_1) * ADAM_BETA_1**age / (1 - ADAM_BETA_1**step)
        square = (1 - ADAM_BETA_2) * ADAM_BETA_2**age / (1 - ADAM_BETA_2**step)
        total += sqrt(float((mean**2 / square).sum()))
    return total


def _sgd_steps(settings: LocalSettings) -> float:
    if settings.noise_multiplier is None:
        return settings.steps * settings.clipping_norm
    expected = settings.expected_batch_size
    deviation = settings.noise_multiplier * settings.clipping_norm * settings.noise_share / expected
    signal = settings.clipping_norm * (1 + _DEVIATIONS / sqrt(expected))
    return settings.steps * signal + _DEVIATIONS * sqrt(settings.steps) * deviation
