"""What one site does in a round: a few optimiser steps on its own records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedllm.errors import TrainingError
from fedllm.mechanisms.work import LocalResult, LocalSettings, LocalStatistics
from fedllm.models.prefix import Dataset, by_length, take
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch
from fedllm.privacy.adaptive import AdaptiveClipping
from fedllm.privacy.dpsgd import (
    Gradients,
    clipped_sum,
    noised_mean,
    per_sample_gradients,
    per_sample_hooks,
    poisson_batch,
)
from fedllm.randomness import RandomStream
from fedllm.training.objectives import record_losses
from fedllm.training.observed import StepRecord
from fedllm.training.optimizers import Optimizer

Vector = NDArray[np.float64]
GradientSource = Callable[[Sequence[nn.Parameter], Callable[[], Tensor]], list[Gradients]]
Released = Callable[[Vector, float], None]


class SiteDataset(Dataset, Protocol):
    """Encoded records that know which unit of privacy each belongs to."""

    @property
    def units(self) -> NDArray[np.int64]:
        """(N,) unit of each record, from 0 without gaps."""
        ...

    @property
    def number_of_units(self) -> int:
        """How many units there are."""
        ...


def train_locally(
    model: SharedModel,
    dataset: SiteDataset,
    settings: LocalSettings,
    sampling: RandomStream,
    noise: RandomStream,
    gradients: GradientSource | None = None,
    released: Released | None = None,
) -> LocalResult:
    """Train the adapter on one site's records, from the values that ``model`` holds.

    The model is left as it was. With a noise multiplier each step is DP-SGD (see
    `fedllm.privacy.dpsgd`); an empty batch still takes a step of noise. Without, each step
    is an ordinary one, and an empty batch is skipped.

    Parameters
    ----------
    model : SharedModel
        Holds the round's starting adapter.
    dataset : SiteDataset
        The site's encoded records.
    sampling, noise : RandomStream
        ``RandomStream.secure()`` both, where privacy counts.
    gradients : callable, optional
        In place of `per_sample_gradients`: audits put gradients that they know into a
        sandboxed copy of a run here. Everything after it is as always.
    released : callable, optional
        Called with each step's noised mean (P,) and the clipping norm behind it, before the
        optimiser makes a step of it: audits look at what the privacy of a step is claimed for.

    Raises
    ------
    TrainingError
        If the update is not finite or did not change the adapter as training must; without
        a noise multiplier also if a loss or gradient is not finite.
    """
    start = model.adapter()
    optimizer = Optimizer(
        settings.optimizer,
        model.manifest.per_value(settings.learning_rate, settings.head_learning_rate),
    )
    vector = start.astype(np.float64)
    record = StepRecord(model.manifest)
    private = settings.noise_multiplier is not None
    clipping = None
    if settings.clipping_quantile is not None:
        clipping = AdaptiveClipping(settings.clipping_norm, settings.clipping_quantile)
    try:
        with per_sample_hooks(model.module, model.row_layers) if private else nullcontext():
            for _ in range(settings.steps):
                indices = poisson_batch(
                    dataset.units, dataset.number_of_units, settings.sampling_rate, sampling
                )
                used = replace(settings, clipping_norm=clipping.norm) if clipping else settings
                seen = len(record.norms)
                total = _gradient_sum(model, dataset, indices, used, record, gradients)
                record.end_of_step(vector, total, len(indices))
                if settings.noise_multiplier is not None and clipping is not None:
                    gradient = clipping.noised_mean(
                        total,
                        np.concatenate([np.empty(0), *record.norms[seen:]]),
                        settings.noise_multiplier,
                        settings.expected_batch_size,
                        noise,
                    )
                elif settings.noise_multiplier is not None:
                    gradient = noised_mean(
                        total,
                        settings.noise_multiplier,
                        settings.clipping_norm,
                        settings.noise_share,
                        settings.expected_batch_size,
                        noise,
                    )
                elif len(indices):
                    gradient = total / settings.expected_batch_size
                else:
                    continue
                if released is not None:
                    released(gradient, used.clipping_norm)
                vector = optimizer.step(vector, gradient)
                model.set_adapter(vector)
    finally:
        model.set_adapter(start)
    update = (vector - start).astype(np.float32)
    record.check(update)
    norm = clipping.norm if clipping else settings.clipping_norm
    return LocalResult(update, record.statistics(), norm)


def clipped_gradient_sum(
    model: SharedModel, dataset: SiteDataset, settings: LocalSettings, sampling: RandomStream
) -> tuple[Vector, LocalStatistics]:
    """Return the sum of one Poisson batch's clipped gradients: private, without any noise.

    For noise that is added after rounding. The sum must not leave the site as it is.

    Parameters
    ----------
    settings : LocalSettings
        ``noise_multiplier`` says that units are clipped; its size does not count here.

    Returns
    -------
    float64 array (P,)
        All zero for an empty batch.
    LocalStatistics
        Private.

    Raises
    ------
    TrainingError
        If the adapter is not connected to the loss.
    """
    record = StepRecord(model.manifest)
    with per_sample_hooks(model.module, model.row_layers):
        indices = poisson_batch(
            dataset.units, dataset.number_of_units, settings.sampling_rate, sampling
        )
        total = _gradient_sum(model, dataset, indices, settings, record)
    record.end_of_step(model.adapter().astype(np.float64), total, len(indices))
    record.check_connected()
    return total, record.statistics()


def _gradient_sum(
    model: SharedModel,
    dataset: SiteDataset,
    indices: NDArray[np.int64],
    settings: LocalSettings,
    record: StepRecord,
    source: GradientSource | None = None,
) -> Vector:
    total = np.zeros(model.manifest.length)
    if not len(indices):
        return total
    batch = dataset.batch(indices)
    people = None if dataset.number_of_units == len(dataset) else dataset.units[indices]
    for places, piece, units in _microbatches(batch, people, settings.microbatch_size):
        attached = model.prefix.attach(dataset, indices[places.numpy()], piece)

        def losses(attached: Batch = attached) -> Tensor:
            values = record_losses(model, attached)
            record.losses.append(values.detach().cpu().double().numpy())
            return values

        if settings.noise_multiplier is None:
            total += _plain_gradient(model, losses())
        else:
            gradients = (source or per_sample_gradients)(model.trained, losses)
            part = clipped_sum(gradients, units, settings.clipping_norm)
            record.norms.append(part.norms)
            total += part.values
    return total


def _plain_gradient(model: SharedModel, losses: Tensor) -> Vector:
    gradients = torch.autograd.grad(losses.sum(), model.trained, materialize_grads=True)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).double().cpu().numpy()
    if not np.isfinite(flat).all():
        raise TrainingError("a batch's gradient is NaN or infinite", "lower the learning rate")
    return flat


def _microbatches(
    batch: Batch, people: NDArray[np.int64] | None, size: int
) -> Iterator[tuple[Tensor, Batch, Tensor | None]]:
    """Cut a batch into pieces of similar length; a person's records stay in one piece."""
    if people is None:
        for places, piece in by_length(batch, size):
            yield places, piece, None
        return
    lengths = batch["attention_mask"].sum(1)
    _, person = torch.unique(torch.from_numpy(people), return_inverse=True)
    members = [torch.nonzero(person == p).flatten() for p in range(int(person.max()) + 1)]
    members.sort(key=lambda places: int(lengths[places].max()))
    while members:
        taken = [members.pop(0)]
        while members and sum(map(len, taken)) + len(members[0]) <= size:
            taken.append(members.pop(0))
        places = torch.cat(taken)
        units = torch.cat([torch.full((len(t),), i) for i, t in enumerate(taken)])
        yield places, take(batch, places, int(lengths[places].max())), units
