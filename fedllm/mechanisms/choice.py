"""Which mechanism a run has: the only place that decides it."""

from __future__ import annotations

from functools import lru_cache

from fedllm.config import RunConfig
from fedllm.mechanisms.discrete import DiscreteSharedNoise
from fedllm.mechanisms.local import LocalNoise
from fedllm.mechanisms.mechanism import Mechanism
from fedllm.mechanisms.none import NoPrivacy
from fedllm.mechanisms.shared import SharedNoise
from fedllm.mechanisms.whole_site import WholeSite, WholeSiteShared


@lru_cache(maxsize=64)
def mechanism_of(config: RunConfig) -> Mechanism:
    """Return the mechanism that a run's configuration asks for."""
    return _class_of(config)(config)


def _class_of(config: RunConfig) -> type[Mechanism]:
    privacy = config.privacy
    shared = privacy.noise == "distributed"
    if privacy.epsilon is None:
        return NoPrivacy
    if privacy.unit == "site":
        return WholeSiteShared if shared else WholeSite
    if privacy.distribution == "discrete_gaussian":
        return DiscreteSharedNoise
    return SharedNoise if shared else LocalNoise
