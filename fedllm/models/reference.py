"""What the model that a run starts from says of each record: fixed before the first step.

Losses of preferences compare the trained model with it. It is the base with the adapter that the
run begins with, which does nothing in an untrained adapter, and is an earlier run's where
``model.start`` names one: not the base with its adapter off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedllm.errors import ENDING
from fedllm.models.pieces import by_width
from fedllm.models.prefix import Dataset
from fedllm.models.sequences import AT_ONCE, answer_likelihoods, by_parts, sequences_in, unpacked
from fedllm.models.transformer import Batch

if TYPE_CHECKING:
    from fedllm.models.shared import SharedModel

Vector = NDArray[np.float32]


class Reference:
    """Log-likelihoods of answers, by the model that a run starts from.

    Computed of each record by itself when it is first drawn, and kept in memory as long as its
    data set: a few numbers a record. They hang on the starting adapter and the record alone, so
    that they are the same whenever they are computed, also after a restart. Nothing of them is
    written down.

    Parameters
    ----------
    model : SharedModel
        Whose adapter is exchanged for the moment.
    """

    def __init__(self, model: SharedModel) -> None:
        self._model = model
        self._values: Vector | None = None
        self._kept: WeakKeyDictionary[Dataset, dict[int, Tensor]] = WeakKeyDictionary()

    @property
    def values(self) -> Vector:
        """Values (T,), float32, of the whole adapter; those before any training if none are set."""
        if self._values is not None:
            return self._values
        return self._model.untrained(self._model.tensors)

    def set(self, values: Vector) -> None:
        """Take another starting adapter, (T,); what was kept for the last one is forgotten."""
        if values.shape == self.values.shape and np.array_equal(values, self.values):
            return
        self._values = values.copy()
        self._kept.clear()

    def take_over(self) -> None:
        """Take the adapter that the model holds now for the one that its run starts from."""
        self.set(self._model.values(self._model.tensors))

    def attach(self, dataset: Dataset, indices: NDArray[np.int64], batch: Batch) -> Batch:
        """Return ``batch`` (the records at ``indices``) with "reference", float32 (B, K).

        A record at which the model or a library breaks off has no number.
        """
        kept = self._kept.setdefault(dataset, {})
        missing = [place for place, index in enumerate(indices) if int(index) not in kept]
        for place in missing:
            kept[int(indices[place])] = self._of_one(_row(batch, place))
        counts = sequences_in(batch).tolist()
        found = torch.zeros(len(counts), max(counts, default=0))
        for row, index, count in zip(found, indices, counts, strict=True):
            row[:count] = kept[int(index)]
        return batch | {"reference": self._model.moved({"reference": found})["reference"]}

    @torch.no_grad()
    def of(self, sequences: Batch) -> Tensor:
        """Return the log-likelihoods (S,) of sequences; see `fedllm.models.sequences.unpacked`."""
        with self._starting():
            return by_parts(partial(answer_likelihoods, self._model.module), sequences, AT_ONCE)

    def _of_one(self, record: Batch) -> Tensor:
        """Return the log-likelihoods of a record's sequences; NaN where it breaks off.

        A lack of memory is no breaking off, and ends the work.
        """
        try:
            return self._model.prefix.with_room(lambda: self._computed(record))
        except ENDING:
            raise
        except BaseException:
            # As where its frozen part is no number: the unit adds nothing.
            return torch.full((int(sequences_in(record)[0]),), torch.nan)

    @torch.no_grad()
    def _computed(self, record: Batch) -> Tensor:
        (_, piece), *_ = by_width(record, 1)
        states = {"states": record["states"]} if "states" in record else {}
        width = piece["input_ids"].shape[1]
        if states and states["states"].shape[1] > width:
            states = {"states": states["states"][:, :width]}
        return self.of(unpacked(piece | states, self._model.pad_id)).cpu()

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Let the model hold the starting adapter."""
        with self._model.restored():
            self._model.put(self._model.tensors, self.values)
            yield


def _row(batch: Batch, place: int) -> Batch:
    return {key: value[place : place + 1] for key, value in batch.items() if key != "reference"}
