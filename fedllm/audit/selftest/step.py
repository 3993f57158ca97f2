"""Checks of a site's training step: clipping, noise, sampling, and that adapters move.

Each calls `fedllm.training.local.train_locally`, the function that trains in production.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fedllm.audit.selftest.material import (
    LEARNING_RATE,
    Material,
    Reference,
    Vector,
    clipped,
    plain_steps,
)
from fedllm.audit.selftest.statistics import (
    binomial,
    central_counts,
    first,
    normal_shape,
    unrelated,
    variance,
)
from fedllm.mechanisms import LocalSettings, mechanism_of
from fedllm.randomness import RandomStream
from fedllm.training import local

# Rounding of float32 gradients; a wrong weight of one record among 24 is fifty times larger.
_TOLERANCE = 1e-3


def _settings(part: Reference, noise_multiplier: float, **changes: float) -> LocalSettings:
    settings = mechanism_of(part.config).settings(part.dataset.number_of_units, noise_multiplier)
    whole = {"steps": 1, "sampling_rate": 1.0, "clipping_norm": part.clipping_norm}
    return replace(settings, **{**whole, **changes})  # type: ignore[arg-type]


def _train(part: Reference, settings: LocalSettings) -> Vector:
    """Return what one call of training adds to the adapter, in units of the batch's sum."""
    update = local.train_locally(
        part.model, part.dataset, settings, RandomStream.secure(), RandomStream.secure()
    ).update.astype(np.float64)
    return -update * settings.expected_batch_size / LEARNING_RATE


def _distance(found: Vector, right: Vector) -> float:
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def clipping_of_records(material: Material, every_task: bool = True) -> str | None:
    """Each record's gradient is cut by itself, for every task on every kind of base model."""
    return _clipping(material, every_task, persons=False)


def clipping_of_persons(material: Material, every_task: bool = True) -> str | None:
    """A person's records are added up before they are cut."""
    return _clipping(material, every_task, persons=True)


def _clipping(material: Material, every_task: bool, persons: bool) -> str | None:
    few = (material.classifier, material.persons, material.causal)
    for part in material.references if every_task else few:
        units = part.dataset.number_of_units
        if (units < len(part.dataset)) != persons:
            continue
        right = clipped(part.unit_gradients, part.clipping_norm).sum(axis=0)
        for microbatch_size in (64, 5):
            found = _train(part, _settings(part, 0.0, microbatch_size=microbatch_size))
            if (gap := _distance(found, right)) > _TOLERANCE:
                who = "persons" if persons else "records"
                return (
                    f"the sum of {who}' clipped gradients is off by {gap:.1%} ({part.config.task})"
                )
        if problem := _one_by_one(part):
            return problem
    return None


def _one_by_one(part: Reference) -> str | None:
    """No unit, not even one with the largest gradient, is let through above the norm."""
    norm = 0.01 * float(np.linalg.norm(part.unit_gradients, axis=1).min())
    each = clipped(part.unit_gradients, norm)
    found = _train(part, _settings(part, 0.0, clipping_norm=norm))
    if (gap := _distance(found, each.sum(axis=0))) > _TOLERANCE:
        return f"with every unit cut, their sum is off by {gap:.1%} ({part.config.task})"
    return None


def noise_of_a_step(material: Material) -> str | None:
    """Noise has the size that the accountant assumes, is normal, and is fresh each time."""
    part, noise, steps = material.classifier, 1.7, 3
    settings = _settings(part, noise, steps=steps)
    drawn = [_train(part, settings) for _ in range(6)]
    # All records are in every batch, so that the difference of two calls is noise alone.
    noises = [a - b for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    right = 2 * steps * (noise * part.clipping_norm) ** 2
    values = np.concatenate(noises)
    return first(
        variance(values, right, "noise of a step"),
        normal_shape(values / np.sqrt(right), "noise of a step"),
        unrelated(noises, len(noises[0]), "noise of different calls"),
    )


def sampling_of_batches(material: Material, calls: int = 120) -> str | None:
    """Each record is in a batch by a draw of its own: Poisson sampling, as accounted."""
    part = material.classifier
    rate, units = 0.25, part.dataset.number_of_units
    batches = _batches(part, rate, steps=1, calls=calls)
    if batches is None:
        return "a batch's sum is not a sum of the records' clipped gradients"
    if batches.min() < 0 or batches.max() > 1:
        return "a record was in one batch more than once"
    sparse = _batches(part, 0.02, steps=1, calls=calls)
    if sparse is None:
        return "an empty batch gives something else than noise"
    nobody = int((sparse.sum(axis=1) == 0).sum())
    repeats = int((batches[::2] * batches[1::2]).sum())
    return first(
        binomial(int(batches.sum()), batches.size, rate, "records drawn"),
        *_sizes(batches.sum(axis=1), units, rate),
        central_counts(
            batches.sum(axis=0).tolist(),
            len(batches),
            rate,
            "records drawn a medium number of times",
        ),
        binomial(nobody, calls, 0.98**units, "empty batches at a small rate"),
        binomial(repeats, batches.size // 2, rate**2, "records in two batches in a row"),
        binomial(
            int((batches[:, ::2] * batches[:, 1::2]).sum()),
            batches.size // 2,
            rate**2,
            "neighbours in a batch",
        ),
    )


def _sizes(found: NDArray[np.int64], units: int, rate: float) -> list[str | None]:
    """Test that batches of every size come as often as they must."""
    law = stats.binom(units, rate)
    return [
        binomial(int((found == size).sum()), len(found), float(law.pmf(size)), f"batches of {size}")
        for size in range(units + 1)
    ]


def batches_of_steps(material: Material, calls: int = 120, all_cases: bool = True) -> str | None:
    """Each local step draws a batch of its own, and a person's records come together."""
    cases = ((material.classifier, 0.25), (material.persons, 0.5))
    for part, rate in cases if all_cases else cases[:1]:
        for steps in (2, 5) if all_cases else (3,):
            counts = _batches(part, rate, steps, calls)
            if counts is None:
                return "a batch's sum is not a sum of the units' clipped gradients"
            if counts.min() < 0 or counts.max() > steps:
                return "a unit counted more often than there were steps"
            problems = [
                binomial(
                    int((counts == times).sum()),
                    counts.size,
                    float(stats.binom.pmf(times, steps, rate)),
                    f"units in {times} of {steps} steps",
                )
                for times in range(steps + 1)
            ]
            if problem := first(*problems):
                return problem
    return None


def _batches(part: Reference, rate: float, steps: int, calls: int) -> NDArray[np.int64] | None:
    """Read out how often each unit was in a batch, (calls, units); None if that cannot be."""
    # A little noise, far below the half by which batches are told apart.
    settings = _settings(part, 1e-3, sampling_rate=rate, steps=steps)
    each = clipped(part.unit_gradients, part.clipping_norm)
    inverse = np.linalg.pinv(each.T)
    weights = np.stack([inverse @ _train(part, settings) for _ in range(calls)])
    if np.abs(weights - np.round(weights)).max() > 0.3:
        return None
    return np.round(weights).astype(np.int64)


def adapters_move(material: Material) -> str | None:
    """Several steps lead where a plain loop leads, and every trained tensor counts."""
    for part in (material.classifier, material.causal):
        if dead := _dead_segments(part):
            return f"the loss does not depend on {dead} ({part.config.task})"
        settings = _settings(part, 0.0, steps=3, clipping_norm=1e6)
        settings = replace(settings, learning_rate=0.05, head_learning_rate=0.02)
        found = local.train_locally(
            part.model, part.dataset, settings, RandomStream.secure(), RandomStream.secure()
        ).update.astype(np.float64)
        right = plain_steps(part.model, part.dataset, settings)
        for segment in part.model.manifest.segments:
            gap = _distance(found[segment.slice], right[segment.slice])
            if not gap <= 20 * _TOLERANCE:
                return f"{segment.name} moved elsewhere than by plain training ({gap:.1%} off)"
    return None


def _dead_segments(part: Reference) -> str | None:
    norms = [
        (segment.name, np.abs(part.gradients[:, segment.slice]).max())
        for segment in part.model.manifest.segments
    ]
    return next((name for name, size in norms if size == 0), None)
