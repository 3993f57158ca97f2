"""Checks of single updates as they leave a site: clipped gradients, and the noise as charged.

Numbers that stand for standard normal ones, up to the largest there are, are put where noise is
drawn; so every value of the opened update is known, and none of the checks is left to chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedllm.adapters import adapter_of
from fedllm.audit.selftest.blocks import scripted
from fedllm.audit.selftest.building import build, records_of
from fedllm.audit.selftest.entropy import scripted_normals
from fedllm.audit.selftest.federation import Federation
from fedllm.audit.selftest.material import (
    MODELS,
    SITES,
    Kind,
    Material,
    Vector,
    clipped,
    dataset_of,
    gradients_of,
    plain_steps,
)
from fedllm.audit.selftest.probe import METHODS, WAYS, Way
from fedllm.audit.selftest.seeds import site_config, update_deviation
from fedllm.config import Task
from fedllm.mechanisms import mechanism_of

# Far above rounding on any processor, far below half precision, which is off by 1e-3 and more.
_EXACT = 2e-4
_NAME = SITES[0]
# An adapter of which a site trains a part, in another A than its own model begins with.
_SENT: tuple[dict[str, Any], int] = ({"method": "eva"}, 1)


def noise_leaves_as_charged(material: Material, every_task: bool) -> str | None:
    """An opened update is the clipped sum and noise of the size that the ledger says."""
    for place, way in enumerate(way for way in WAYS if not way.discrete and not way.moving):
        models = MODELS if every_task else (MODELS[2 * (place % 2)],)
        for kind, task in models:
            if problem := _leaves(material, way, kind, task):
                return f"{way.name} ({task}, {kind}): {problem}"
    for lora, number in (*METHODS, _SENT):
        if problem := _leaves(material, WAYS[0], *MODELS[0], lora, number):
            return f"adapters by {lora['method']}, round {number}: {problem}"
    return None


def _leaves(
    material: Material,
    way: Way,
    kind: Kind,
    task: Task,
    lora: Mapping[str, Any] | None = None,
    number: int = 1,
) -> str | None:
    config = site_config(
        material, way, kind=kind, task=task, lora=dict(lora or {}), evaluation={"every": 0}
    )
    federation = build(material, config)
    noise = mechanism_of(config).announced_noise(1, ())
    steps = way.releases(config)
    # Each step draws the same; so all together stay within what is drawn in one.
    script = scripted(federation.terms.update_length) / np.sqrt(steps)
    with scripted_normals(script):
        found = federation.sent(_NAME, number, noise=noise)
    event: Any = federation.charges(_NAME)[-1].events[0]
    deviations = update_deviation(federation, way, event)
    left = (found - _reference(material, federation, way, number)) / deviations
    # Of standard deviations that hold for all steps together.
    worst = np.abs(left - way.sign * script * np.sqrt(steps))
    if worst.max() < _EXACT:
        return None
    place = int(worst.argmax())
    return (
        f"value {place} of an opened update is off by {worst.max():.3g} of the deviations that "
        "the ledger says"
    )


def _reference(material: Material, federation: Federation, way: Way, number: int) -> Vector:
    """Return what the site's update must be without noise, by a plain loop, (P,)."""
    config = federation.config
    model = material.model(config)
    adapter_of(model, number).place(federation.start)
    dataset = dataset_of(records_of(_NAME, config.task), config, model)
    norm, training = config.privacy.clipping_norm, config.training
    if way.divided == "not":
        settings = mechanism_of(config).settings(len(dataset), None)
        moved = plain_steps(model, dataset, replace(settings, noise_multiplier=None))
        return clipped(moved[None], norm)[0]
    total = clipped(gradients_of(model, dataset), norm).sum(axis=0)
    divisor = len(dataset) if way.divided == "units" else training.batch_size
    return -training.learning_rate * training.local_steps * total / divisor
