"""What one site does in a round: a few optimiser steps on its own records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedllm.errors import ENDING, TrainingError
from fedllm.mechanisms.work import LocalResult, LocalSettings, LocalStatistics
from fedllm.models.pieces import by_unit, by_width
from fedllm.models.prefix import Dataset
from fedllm.models.recomputing import recomputed
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch
from fedllm.privacy.adaptive import AdaptiveClipping
from fedllm.privacy.dpsgd import (
    Gradients,
    added_up,
    clipped,
    forget_step,
    noised_mean,
    per_sample_gradients,
    per_sample_hooks,
    poisson_batch,
    unit_gradients,
)
from fedllm.randomness import RandomStream
from fedllm.training.objectives import record_losses
from fedllm.training.observed import StepRecord
from fedllm.training.optimizers import Optimizer

Vector = NDArray[np.float64]
# Fits float32 with room to spare.
_LARGEST = 1e38
GradientSource = Callable[[Sequence[nn.Parameter], Callable[[], Tensor]], list[Gradients]]
Trained = NDArray[np.bool_]
Released = Callable[[Vector, float], None]


class SiteDataset(Dataset, Protocol):
    """Encoded records that know which unit of privacy each belongs to."""

    @property
    def units(self) -> NDArray[np.int64]:
        """(N,) unit of each record, from 0; a unit may have no record."""
        ...

    @property
    def number_of_units(self) -> int:
        """How many units there are, those without records included."""
        ...


def train_locally(
    model: SharedModel,
    dataset: SiteDataset,
    settings: LocalSettings,
    sampling: RandomStream,
    noise: RandomStream,
    gradients: GradientSource | None = None,
    released: Released | None = None,
    trained: Trained | None = None,
) -> LocalResult:
    """Train the adapter on one site's records, from the values that ``model`` holds.

    The model is left as it was. With a noise multiplier each step is DP-SGD (see
    `fedllm.privacy.dpsgd`); an empty batch still takes a step of noise. Without, each step
    is an ordinary one, and an empty batch is skipped.

    A private step ends in a noised sum whatever the records are: a unit at which the model or
    a library breaks off adds nothing. What else looks wrong stands in the statistics, for the
    site's own log; `fedllm.training.made_up` tells beforehand, on records that are nobody's,
    whether training can work at all. A lack of memory ends the training: it need not be the
    unit's own doing.

    Parameters
    ----------
    model : SharedModel
        Holds the round's starting adapter.
    dataset : SiteDataset
        The site's encoded records.
    sampling, noise : RandomStream
        ``RandomStream.secure()`` both, where privacy counts.
    gradients : callable, optional
        In place of `gradients_of`: audits put gradients that they know into a
        sandboxed copy of a run here. Everything after it is as always.
    released : callable, optional
        Called with each step's noised mean (P,) and the clipping norm behind it, before the
        optimiser makes a step of it: audits look at what the privacy of a step is claimed for.
    trained : bool array (P,), optional
        Which values move; the others have no gradient and no noise. Public.

    Raises
    ------
    TrainingError
        Without a noise multiplier: if the update is not finite or did not change the adapter as
        training must, or a loss or gradient is not finite.
    ShortOfMemoryError
        See `PrefixCache.with_room`.
    """
    start = model.adapter()
    optimizer = Optimizer(
        settings.optimizer,
        model.manifest.per_value(settings.learning_rate, settings.head_learning_rate),
    )
    vector = start.astype(np.float64)
    record = StepRecord(model.manifest, model.frozen_zeros)
    private = settings.noise_multiplier is not None
    clipping = None
    if settings.clipping_quantile is not None:
        clipping = AdaptiveClipping(settings.clipping_norm, settings.clipping_quantile)
    try:
        with _collecting(model, settings, sampling):
            for _ in range(settings.steps):
                indices = poisson_batch(
                    dataset.units, dataset.number_of_units, settings.sampling_rate, sampling
                )
                used = replace(settings, clipping_norm=clipping.norm) if clipping else settings
                seen = len(record.norms)
                total = _gradient_sum(model, dataset, indices, used, record, gradients, trained)
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
                        settings.expected_batch_size,
                        noise,
                    )
                elif len(indices):
                    gradient = total / settings.expected_batch_size
                else:
                    continue
                if trained is not None:
                    gradient = np.where(trained, gradient, 0.0)
                if released is not None:
                    released(gradient, used.clipping_norm)
                vector = optimizer.step(vector, gradient)
                if private:
                    # Noised already; and what a site computes must end in an answer.
                    vector = np.clip(np.nan_to_num(vector), -_LARGEST, _LARGEST)
                model.set_adapter(vector)
    finally:
        model.set_adapter(start)
    update = (vector - start).astype(np.float32)
    if private:
        update = record.check_private(update)
    else:
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
    ShortOfMemoryError
        As in `train_locally`.
    """
    record = StepRecord(model.manifest, model.frozen_zeros)
    with _collecting(model, settings, sampling):
        indices = poisson_batch(
            dataset.units, dataset.number_of_units, settings.sampling_rate, sampling
        )
        total = _gradient_sum(model, dataset, indices, settings, record)
    record.end_of_step(model.adapter().astype(np.float64), total, len(indices))
    record.look_connected()
    return total, record.statistics()


@contextmanager
def watched(model: SharedModel, activation_checkpointing: bool) -> Iterator[None]:
    """Be in what `gradients_of` needs to find the gradients of one unit's records."""
    with ExitStack() as ways:
        if not _by_units(model):
            ways.enter_context(per_sample_hooks(model.module, model.row_layers))
        if activation_checkpointing:
            ways.enter_context(recomputed(model.module.stack.trained_layers))
        yield


def gradients_of(model: SharedModel) -> GradientSource:
    """Return how gradients of one unit's records are found, inside `watched`."""
    return unit_gradients if _by_units(model) else per_sample_gradients


def _by_units(model: SharedModel) -> bool:
    """Whether plain backpropagation gives a unit's gradient, where hooks know too little.

    They know no part of a tensor of the base for each record, and would take the sequences of one
    record, which make one loss, for as many records.
    """
    return bool(model.own_tensors) or model.several_sequences


@contextmanager
def _collecting(
    model: SharedModel, settings: LocalSettings, sampling: RandomStream
) -> Iterator[None]:
    """Let losses and backward passes give what steps with these settings need."""
    checkpointing = settings.activation_checkpointing
    with ExitStack() as ways:
        ways.enter_context(model.words.drawn(settings.sampled_words, sampling))
        if settings.noise_multiplier is not None:
            ways.enter_context(watched(model, checkpointing))
        elif checkpointing:
            ways.enter_context(recomputed(model.module.stack.trained_layers))
        yield


def _gradient_sum(
    model: SharedModel,
    dataset: SiteDataset,
    indices: NDArray[np.int64],
    settings: LocalSettings,
    record: StepRecord,
    source: GradientSource | None = None,
    trained: Trained | None = None,
) -> Vector:
    total = np.zeros(model.manifest.length)
    if not len(indices):
        return total
    batch = dataset.batch(indices)
    if settings.noise_multiplier is None:
        for places, piece in by_width(batch, settings.microbatch_size):
            total += _plain(model, dataset, indices[places.numpy()], piece, record)
        return total if trained is None else np.where(trained, total, 0.0)
    took = _OneUnit(model, dataset, settings, record, source or gradients_of(model), trained)
    for pieces in by_unit(batch, dataset.units[indices], settings.microbatch_size):
        total += took.clipped([(indices[places.numpy()], piece) for places, piece in pieces])
    return total


def _plain(
    model: SharedModel,
    dataset: SiteDataset,
    rows: NDArray[np.int64],
    piece: Batch,
    record: StepRecord,
) -> Vector:
    seen = len(record.losses)

    def gradient() -> Vector:
        attached = model.attach(dataset, rows, piece)
        return plain_gradient(model, _losses(model, attached, record))

    def forget() -> None:
        del record.losses[seen:]

    return model.prefix.with_room(gradient, forget)


def _losses(model: SharedModel, batch: Batch, record: StepRecord) -> Tensor:
    """Return the loss of every record, and note them."""
    values = record_losses(model, batch)
    record.losses.append(values.detach().cpu().double().numpy())
    return values


@dataclass(frozen=True)
class _OneUnit:
    """What one unit adds to a step: computed of its own records, and of nobody else's."""

    model: SharedModel
    dataset: SiteDataset
    settings: LocalSettings
    record: StepRecord
    gradients: GradientSource
    trained: Trained | None = None

    def clipped(self, pieces: Sequence[tuple[NDArray[np.int64], Batch]]) -> Vector:
        """Return the unit's clipped gradient (P,); zeros where a library breaks off.

        To give up the whole batch would make all its gradients hang on one unit, and to refuse
        would tell that such a unit is there. A lack of memory is another matter: it may come of
        what lies around the unit, and adding nothing then would let others decide whether it
        counts.

        Parameters
        ----------
        pieces : sequence of (int64 array, Batch)
            The unit's records: which of the data set, and the same, padded.

        Raises
        ------
        ShortOfMemoryError
            If the unit alone, with nothing kept of others, has too little memory.
        """
        seen = len(self.record.losses)

        def forget() -> None:
            forget_step(self.model.module)
            del self.record.losses[seen:]

        try:
            gradient = self.model.prefix.with_room(
                lambda: sum(self._gradient(rows, piece) for rows, piece in pieces), forget
            )
        except ENDING:
            raise
        except BaseException as error:
            forget()
            self.record.broke_off(error)
            # As one whose kept frozen part is no number: others decide whether it is kept.
            self.record.norms.append(np.array([np.inf]))
            return np.zeros(self.model.manifest.length)
        whole = np.asarray(gradient)
        if self.trained is not None:
            # Before clipping: what is not sent must not shorten what is.
            whole = np.where(self.trained, whole, 0.0)
        part = clipped(whole, self.settings.clipping_norm)
        self.record.norms.append(np.array([part.norm]))
        return part.values

    def _gradient(self, rows: NDArray[np.int64], piece: Batch) -> Vector:
        attached = self.model.attach(self.dataset, rows, piece)
        return added_up(
            self.gradients(self.model.trained, lambda: _losses(self.model, attached, self.record))
        )


def plain_gradient(model: SharedModel, losses: Tensor) -> Vector:
    """Return the gradient (P,) of the sum of losses (B,), float64, without any privacy.

    Raises
    ------
    TrainingError
        If it is not finite.
    """
    gradients = torch.autograd.grad(losses.sum(), model.trained, materialize_grads=True)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).double().cpu().numpy()
    if not np.isfinite(flat).all():
        raise TrainingError("a batch's gradient is NaN or infinite", "lower the learning rate")
    return flat
