"""Checks of a clipping norm that moves: what it follows, its count's noise, and the charge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
import torch
from torch import Tensor, nn

from fedllm.audit.selftest.building import build, records_of
from fedllm.audit.selftest.federation import RUN, Federation
from fedllm.audit.selftest.material import (
    LEARNING_RATE,
    SITES,
    Material,
    Reference,
    Vector,
    clipped,
    dataset_of,
    gradients_of,
)
from fedllm.audit.selftest.statistics import first, unrelated, variance
from fedllm.encryption.pack import unpack
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import SecretRoundKey
from fedllm.mechanisms import LocalResult, LocalSettings, mechanism_of
from fedllm.models.pieces import by_unit
from fedllm.privacy.accounting.events import PoissonGaussian
from fedllm.privacy.adaptive import COUNT_WEIGHT, STEP
from fedllm.privacy.dpsgd import Gradients
from fedllm.randomness import RandomStream
from fedllm.training import local
from fedllm.training.optimizers import ADAM_STABILITY

_TOLERANCE = 1e-3
_CALLS = 400
# What the noise must hide of one unit: its gradient of length 1 in units of the norm, and
# its half in the count, weighted.
_REACH = float(np.hypot(1.0, COUNT_WEIGHT))


def norm_follows(material: Material) -> str | None:
    """Without noise, steps and norm are those of a plain loop over persons."""
    part, quantile, steps = material.persons, 0.8, 3
    lengths = np.linalg.norm(part.unit_gradients, axis=1)
    norms = _far_from(lengths, quantile, steps)
    settings = _settings(part, 0.0, quantile, steps, microbatch_size=5)
    settings = replace(settings, clipping_norm=norms[0])
    result = _train(part, settings)
    right = sum(clipped(part.unit_gradients, norm).sum(axis=0) for norm in norms[:-1])
    norm = norms[-1]
    found = _sum_of(result, settings)
    if (gap := float(np.linalg.norm(found - right) / np.linalg.norm(right))) > _TOLERANCE:
        return f"the sum of gradients clipped to a moving norm is off by {gap:.1%}"
    if abs(result.clipping_norm / norm - 1) > _TOLERANCE:
        return "the clipping norm does not follow the share of gradients within it"
    return None


def _far_from(lengths: Vector, quantile: float, steps: int) -> list[float]:
    """Return the norms of ``steps`` steps and the last, none of them near any unit's length.

    Near one, rounding would decide whether that unit is within, and with it the next norm.
    """

    def course(norm: float) -> list[float]:
        norms = [norm]
        for _ in range(steps):
            within = float(np.mean(lengths <= norms[-1]))
            norms.append(norms[-1] * float(np.exp(-STEP * (within - quantile))))
        return norms

    def distance(norms: list[float]) -> float:
        return min(float(np.abs(np.log(lengths / norm)).min()) for norm in norms)

    starts = np.geomspace(np.quantile(lengths, 0.25), np.quantile(lengths, 0.75), 200)
    return max((course(float(start)) for start in starts), key=distance)


def noise_of_sum_and_count(material: Material) -> str | None:
    """Gradients and count are noised for what one unit adds to both together."""
    part, noise, quantile = material.classifier, 0.5, 0.5
    settings = _settings(part, noise, quantile, steps=1, microbatch_size=64)
    norm = settings.clipping_norm
    right = clipped(part.gradients, norm).sum(axis=0)
    within = np.count_nonzero(np.linalg.norm(part.gradients, axis=1) <= norm)
    known = _known_gradients(part)
    sums, counts = [], []
    for _ in range(_CALLS):
        result = _train(part, settings, known)
        sums.append(_sum_of(result, settings) - right)
        # The share of the units as it was released; nine deviations from being cut off.
        released = quantile - np.log(result.clipping_norm / norm) / STEP
        counts.append(released * settings.expected_batch_size - within)
    # Andrew et al. 2021, theorem 1, in one vector: each part's noise is larger than alone.
    deviation = noise * _REACH
    return first(
        variance(np.concatenate(sums), (deviation * norm) ** 2, "noise beside a moving norm"),
        variance(np.array(counts), (deviation / (2 * COUNT_WEIGHT)) ** 2, "noise of the count"),
        unrelated(sums[:6], len(right), "noise beside a moving norm"),
    )


def noise_as_charged(material: Material) -> str | None:
    """A site's update in a round holds the noise that its ledger was charged for."""
    config = material.config(
        "bert",
        # So small a norm that Adam's first step still tells how large the gradient was.
        privacy={"clipping_quantile": 0.5, "clipping_norm": 4e-7},
        training={"optimizer": "adam", "local_steps": 1, "learning_rate": 1e-3},
        encryption={"masks": False, "bits": 24},
    )
    federation, name = build(material, config), SITES[0]
    step = _update_of(federation, name) / -config.training.learning_rate
    events = federation.ledger(name).events_of_run(RUN)
    if len(events) != 1 or not isinstance(events[0], PoissonGaussian):
        return "the ledger does not hold the round"
    model = material.model(config)
    dataset = dataset_of(records_of(name), config, model)
    each = clipped(gradients_of(model, dataset), 1.0)
    # The first step of Adam is g / (|g| + s): solved for g.
    mean = ADAM_STABILITY * step / (1 - np.abs(step))
    batch = mechanism_of(config).settings(dataset.number_of_units, None).expected_batch_size
    total = mean * batch / config.privacy.clipping_norm
    basis, *_ = np.linalg.svd(each.T, full_matrices=False)
    left = total - basis @ (basis.T @ total)
    right = (events[0].noise_multiplier * _REACH) ** 2
    return variance(
        left, right, "noise of a round with a moving norm", freedom=len(left) - len(each)
    )


def _update_of(federation: Federation, name: str) -> Vector:
    order, context = federation.order(1)
    plan = federation.plan
    slots = SecretRoundKey(plan, context).decrypt_sum(federation.payload(name, order))
    quantiser = Quantiser(federation.terms.bounds, plan.bits)
    return quantiser.dequantise_sum(unpack(slots, plan, 1), 1)


def _settings(
    part: Reference, noise_multiplier: float, quantile: float, steps: int, microbatch_size: int
) -> LocalSettings:
    settings = mechanism_of(part.config).settings(part.dataset.number_of_units, noise_multiplier)
    return replace(
        settings,
        steps=steps,
        sampling_rate=1.0,
        expected_batch_size=float(part.dataset.number_of_units),
        microbatch_size=microbatch_size,
        clipping_norm=part.clipping_norm,
        clipping_quantile=quantile,
    )


def _train(
    part: Reference, settings: LocalSettings, gradients: local.GradientSource | None = None
) -> LocalResult:
    sampling, noise = RandomStream.secure(), RandomStream.secure()
    return local.train_locally(part.model, part.dataset, settings, sampling, noise, gradients)


def _sum_of(result: LocalResult, settings: LocalSettings) -> Vector:
    """Return what the steps added, in units of a batch's sum; (P,)."""
    return -result.update.astype(np.float64) * settings.expected_batch_size / LEARNING_RATE


def _known_gradients(part: Reference) -> local.GradientSource:
    """Give all records' gradients, unit after unit, without computing them again."""
    rows = [
        torch.from_numpy(part.gradients[:, segment.slice]).reshape(len(part.dataset), *p.shape)
        for segment, p in zip(part.model.manifest.segments, part.model.trained, strict=True)
    ]
    batch = part.dataset.batch(np.arange(len(part.dataset)))
    units = by_unit(batch, part.dataset.units, len(part.dataset))
    pieces = cycle([places for pieces in units for places, _ in pieces])

    def known(parameters: Sequence[nn.Parameter], losses: Callable[[], Tensor]) -> list[Gradients]:
        places = next(pieces)
        return [each[places] for each in rows]

    return known
