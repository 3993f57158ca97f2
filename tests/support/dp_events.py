"""Events in the vocabulary of other accountants, to compare with."""

from typing import Any

import dp_accounting as dp

from fedllm.privacy.accounting.events import Event, Gaussian, NonPrivate, Stated


def to_dp_event(event: Event) -> Any:
    """Return the same event as a ``dp_accounting.DpEvent``, for other accountants.

    Discrete noise is stated as the continuous noise that it is worth; what was only stated is
    nothing that they can compute with.
    """
    if isinstance(event, NonPrivate):
        return dp.NonPrivateDpEvent()
    if isinstance(event, Stated):
        return dp.UnsupportedDpEvent()
    gaussian = dp.GaussianDpEvent(event.noise_multiplier)
    if isinstance(event, Gaussian):
        return dp.SelfComposedDpEvent(gaussian, event.count)
    sampled = dp.PoissonSampledDpEvent(event.sampling_rate, gaussian)
    return dp.SelfComposedDpEvent(sampled, event.steps)
