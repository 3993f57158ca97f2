"""Whether training can work at all, tried on records that are nobody's.

A check on the records themselves would tell of them: whoever chooses the adapter can arrange
that a tensor gets a gradient from one record alone, and a refusal would then say whether that
record is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from itertools import count
from weakref import ref as weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedllm.data.encode import EncodedDataset
from fedllm.errors import STOPPING, FedllmError, ShortOfMemoryError, TrainingError
from fedllm.memory import lacks_memory
from fedllm.models.sequences import AT_ONCE, KINDS
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch
from fedllm.privacy.dpsgd import Gradients, OuterProducts, forget_step
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training.local import gradients_of, watched
from fedllm.training.objectives import record_losses
from fedllm.training.observed import StepRecord

_RECORDS = 4
# Sites of other ranks are sent other adapters in the same round.
_PASSED = 16


@dataclass(frozen=True)
class _Way:
    """How a run computes a step, as far as trying it depends on that."""

    max_length: int
    activation_checkpointing: bool
    sampled_words: int | None

    @contextmanager
    def watched(self, model: SharedModel) -> Iterator[None]:
        """Be in what gradients need."""
        with (
            model.words.drawn(self.sampled_words, RandomStream.secure()),
            watched(model, self.activation_checkpointing),
        ):
            yield


class MadeUpTraining:
    """Takes the gradients of a private step on made-up records.

    Keeps the records of the last model, encoded, and knows the adapters that it has let through:
    sites that share a process are sent the same one each round.
    """

    def __init__(self) -> None:
        # A base model is gigabytes: whoever lets go of it frees it.
        self._of: tuple[weakref[SharedModel], int] | None = None
        self._records: EncodedDataset | None = None
        self._passed: deque[tuple[object, ...]] = deque(maxlen=_PASSED)

    def require(
        self,
        model: SharedModel,
        max_length: int,
        *,
        activation_checkpointing: bool = False,
        sampled_words: int | None = None,
        rows_at_once: int = 0,
    ) -> None:
        """Refuse a model that could not be trained from the adapter that it holds.

        Everything that the answer depends on is public: the base model, the adapter, the labels
        and records that are the same everywhere.

        Parameters
        ----------
        model : SharedModel
            Holds the adapter that a round starts with; left as it is.
        max_length : int
            Most tokens of a record.
        activation_checkpointing : bool
            Whether the run trains with it.
        sampled_words : int, optional
            With how many words the run compares a token.
        rows_at_once : int
            Most records of one unit that are computed at once: where a GPU computes, so many of
            the longest are tried. 0 tries none.

        Raises
        ------
        TrainingError
            If a loss is no number, or a tensor gets no gradient that must get one.
        ShortOfMemoryError
            If there is too little memory.
        """
        way = _Way(max_length, activation_checkpointing, sampled_words)
        asked = _asked(model, way)
        found = None
        try:
            if asked not in self._passed:
                found = self._step(model, way)
            # What room there is may have changed since.
            if rows_at_once and model.device.type != "cpu":
                self._longest(model, way, rows_at_once)
        except STOPPING:
            raise
        except BaseException as error:
            if lacks_memory(error):
                # Nothing is wrong with the adapter: others may train from it.
                raise _too_small(model, max_length, rows_at_once or 1) from None
            if isinstance(error, FedllmError):
                raise
            # The records are public, and so are these words.
            raise TrainingError(
                f"a private step on made-up records broke off ({type(error).__name__}: {error})",
                "the base model does not fit the run's task or lora.target_modules",
            ) from error
        if found is None:
            return
        self._check(model, *found)
        if not model.sent_reference:
            # Losses are also by what the run starts from, which the model does not hold.
            self._passed.append(asked)

    def _check(
        self, model: SharedModel, losses: NDArray[np.float64], reached: NDArray[np.float64]
    ) -> None:
        """Refuse what a step came to; see `require`."""
        if not np.isfinite(losses).any():
            raise TrainingError(
                "the shared model gives no loss that is a number",
                "the run has diverged: start again with lower learning rates",
            )
        record = StepRecord(model.manifest, model.frozen_zeros)
        record.losses.append(losses)
        record.end_of_step(model.adapter().astype(np.float64), reached, len(losses))
        record.check_connected()

    def _step(
        self, model: SharedModel, way: _Way
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the losses (B,), and for each value whether its tensor has a gradient (P,)."""
        records = self._records_of(model, way.max_length)
        kept: list[NDArray[np.float64]] = []
        reached = np.zeros(model.manifest.length)

        # Each record by itself: in a sum, opposite ones could cancel.
        def losses(batch: Batch) -> Tensor:
            values = record_losses(model, batch)
            kept.append(values.detach().cpu().double().numpy())
            return values

        try:
            with way.watched(model):
                for index in range(len(records)):
                    one = partial(losses, model.moved(records.batch(np.array([index]))))
                    gradients = gradients_of(model)(model.trained, one)
                    for segment, gradient in zip(model.manifest.segments, gradients, strict=True):
                        reached[segment.slice] += float(_reaches(gradient))
        finally:
            forget_step(model.module)
        return np.concatenate(kept), reached

    def _records_of(self, model: SharedModel, max_length: int) -> EncodedDataset:
        if self._of != (weakref(model), max_length) or self._records is None:
            self._of = weakref(model), max_length
            self._records = made_up_records(model, max_length)
        return self._records

    def _longest(self, model: SharedModel, way: _Way, rows: int) -> None:
        """Take the gradient of one unit with the longest records: whether there is room."""
        records = self._records_of(model, way.max_length)
        if model.several_sequences:
            # They have two answers; a record may have more, which are computed so many at a time.
            rows = max(rows, AT_ONCE // 2)
        batch = model.moved(_stretched(records.batch(np.array([0])), rows, way.max_length))
        try:
            with way.watched(model):
                model.prefix.with_room(
                    lambda: gradients_of(model)(model.trained, lambda: record_losses(model, batch)),
                    lambda: forget_step(model.module),
                )
        finally:
            forget_step(model.module)


def _asked(model: SharedModel, *settings: object) -> tuple[object, ...]:
    """Return all that an answer depends on."""
    held = sha256(model.values(model.tensors).data).digest()
    return weakref(model), model.manifest, held, *settings


def _too_small(model: SharedModel, max_length: int, rows: int) -> ShortOfMemoryError:
    on_gpu = model.device.type != "cpu"
    return ShortOfMemoryError(
        f"the memory of {model.device if on_gpu else 'this machine'} is too small for the "
        f"gradient of {rows} record(s) of model.max_length = {max_length} tokens",
        (
            "free the GPU of other programs, let the site train on its processor, "
            if on_gpu
            else "free memory of other programs, raise the limit that the process runs under, "
        )
        + "or give the run a smaller model.max_length or training.microbatch_size, or "
        "training.activation_checkpointing = true",
    )


def _stretched(batch: Batch, rows: int, length: int) -> Batch:
    """Return one record ``rows`` times, its tokens again and again up to a length."""
    if "pairs" in batch:
        return _stretched_sequences(batch, rows, length)

    def wide(values: Tensor) -> Tensor:
        if values.dim() == 1:
            return values.repeat(rows)
        return values.repeat(rows, -(-length // values.shape[1]))[:, :length]

    found = {key: wide(value) for key, value in batch.items()}
    return found | {"attention_mask": torch.ones_like(found["attention_mask"])}


def _stretched_sequences(batch: Batch, rows: int, length: int) -> Batch:
    """Do so where a record is several sequences: the longest of them gets the length."""
    _, lengths = torch.unique(batch["labels"][batch["labels"] >= 0] // KINDS, return_counts=True)
    times = max(1, length // int(lengths.max()))
    # Each token by itself, so that those of a sequence stay together.
    found = {
        key: value.repeat_interleave(times, 1) if value.dim() == 2 else value
        for key, value in batch.items()
    }
    return {key: value.repeat(rows, *[1] * (value.dim() - 1)) for key, value in found.items()}


def made_up_records(model: SharedModel, max_length: int) -> EncodedDataset:
    """Make a few records of a model's task, the same everywhere."""
    task, number = task_of(model), count()
    stream = RandomStream.seeded(0, "made-up records")
    records = [
        task.made_up(
            lambda words: " ".join(f"word {next(number)}" for _ in range(words)),
            stream,
            model.labels,
        )
        for _ in range(_RECORDS)
    ]
    return task.encode(records, model.tokenizer, max_length, model.labels)


def _reaches(gradient: Gradients) -> bool:
    if isinstance(gradient, OuterProducts):
        rows = gradient.backprops.any(dim=1) & gradient.activations.any(dim=1)
        return bool(rows.any())
    return bool(torch.any(gradient != 0))


@lru_cache(maxsize=1)
def process_trials() -> MadeUpTraining:
    """Return this process's only `MadeUpTraining`: Flower hands handlers no state of their own."""
    return MadeUpTraining()
