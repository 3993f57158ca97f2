"""What a private step must add up to, from gradients of single records in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from support.doubles import doubles
from torch import Tensor

from fedllm.mechanisms import LocalSettings
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.training.local import SiteDataset, clipped_gradient_sum

RELATIVE = 1e-9
_CLIPPING_NORM = 0.3


def trained_somehow(model: SharedModel, *seed: str) -> SharedModel:
    """Give a model a random adapter, and let it compute in float64."""
    drawn = RandomStream.seeded(3, *seed).normal(model.manifest.length)
    model.set_adapter(0.3 * drawn)
    model.module.double()
    return model


def same(found: Tensor, expected: Tensor) -> None:
    """See that two tensors are the same but for float64's rounding, and not nothing."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float64
    assert float(expected.norm()) > 1e-3
    assert float((found - expected).norm()) <= RELATIVE * float(expected.norm())


def all_different(gradients: Tensor) -> None:
    """See that each gradient is another than the one before, so that rows cannot be mixed up."""
    for one, other in pairwise(gradients):
        assert float((one - other).norm()) > 1e-3 * float(one.norm())


def adds_up(
    model: SharedModel,
    data: SiteDataset,
    units: Sequence[int],
    alone: Callable[[int], Tensor],
) -> None:
    """See that a private step, as sites do it, is the sum of the units' clipped gradients.

    Parameters
    ----------
    units : sequence of int
        Of each record, from 0.
    alone : callable
        Returns one record's gradient, (P,), computed by itself.
    """
    settings = LocalSettings(
        steps=1,
        sampling_rate=1.0,
        expected_batch_size=4.0,
        microbatch_size=2,
        optimizer="sgd",
        learning_rate=1.0,
        head_learning_rate=1.0,
        clipping_norm=_CLIPPING_NORM,
        noise_multiplier=0.0,
    )
    with doubles():
        total, _ = clipped_gradient_sum(model, data, settings, RandomStream.seeded(0, "sampling"))
        gradients = torch.stack([alone(index) for index in range(len(units))])
        mine = [
            gradients[[i for i, own in enumerate(units) if own == unit]].sum(0)
            for unit in sorted(set(units))
        ]
        clipped = [g * min(1.0, _CLIPPING_NORM / float(g.norm())) for g in mine]
        same(torch.from_numpy(total), torch.stack(clipped).sum(0))
    assert max(float(g.norm()) for g in mine) > _CLIPPING_NORM
