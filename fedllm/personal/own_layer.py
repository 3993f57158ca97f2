"""A layer of the site's own on top of the shared model, trained without noise and never sent.

It is a change of what the run trained (head, adapter), learned from the site's own records and
begun at the shared model. How long to train, and how far to go from the shared model to what came
out (Wortsman et al. 2022), is chosen by cross-validation on the training records; where nothing is
better by more than its standard error, the shared model is kept as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.data.encode import EncodedDataset
from fedllm.models.pieces import by_width
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.training.local import plain_gradient
from fedllm.training.objectives import record_losses
from fedllm.training.optimizers import Optimizer

Vector = NDArray[np.float64]
Rows = NDArray[np.int64]
# Adam's rates: a head of normalised features takes larger steps than an adapter.
_ADAPTER_RATE, _HEAD_RATE = 1e-3, 1e-2
_BATCH, _PIECE = 32, 16
_FOLDS, _FEWEST_UNITS = 5, 10
# A head on kept features costs next to nothing.
_EPOCHS_OF_HEAD, _EPOCHS = (1, 2, 4, 8, 16, 32), (1, 2, 4)
_BLENDS = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class OwnLayer:
    """What a site puts on top of the shared model.

    Attributes
    ----------
    change : float32 array (P,)
        Added to what the run trained; zeros where the shared model is kept as it is.
    epochs : int
        How long it was trained; 0 where it is kept.
    blend : float
        Which part of the way was gone, from 0 to 1.
    """

    change: NDArray[np.float32]
    epochs: int
    blend: float


def fit_own_layer(
    model: SharedModel, dataset: EncodedDataset, heard: Callable[[], None] = lambda: None
) -> OwnLayer:
    """Train a layer on top of what the model holds; leaves the model as it was.

    Parameters
    ----------
    model : SharedModel
        Holds the shared adapter.
    dataset : EncodedDataset
        The site's own training records.
    heard : callable
        Called after each fold, and at the end.
    """
    return _Training(model, dataset, _BLENDS, heard).fitted(keep=True)


def fit_alone(
    model: SharedModel, dataset: EncodedDataset, heard: Callable[[], None] = lambda: None
) -> OwnLayer:
    """Train the same from what the model holds, an untrained adapter, on these records alone."""
    return _Training(model, dataset, (1.0,), heard).fitted(keep=False)


class _Training:
    def __init__(
        self,
        model: SharedModel,
        dataset: EncodedDataset,
        blends: Sequence[float],
        heard: Callable[[], None],
    ) -> None:
        self._model = model
        self._dataset = dataset
        self._blends = blends
        self._heard = heard
        self._start = model.adapter().astype(np.float64)
        self._epochs = _EPOCHS if model.adapts_layers else _EPOCHS_OF_HEAD
        # Of what stays at the site: the same records give the same layer.
        self._random = RandomStream.seeded(0, "own layer")

    def fitted(self, keep: bool) -> OwnLayer:
        """Choose by cross-validation and train on all records; perhaps ``keep`` the start."""
        everyone = np.arange(len(self._dataset), dtype=np.int64)
        units = len(np.unique(self._dataset.units))
        try:
            if units < _FEWEST_UNITS:
                epochs, blend = (0, 0.0) if keep else (self._epochs[-1], 1.0)
            else:
                epochs, blend = self._chosen(keep)
            vector = self._start
            for after in self._trained(everyone, epochs):
                vector = after
        finally:
            self._model.set_adapter(self._start)
        self._heard()
        return OwnLayer((blend * (vector - self._start)).astype(np.float32), epochs, blend)

    def _chosen(self, keep: bool) -> tuple[int, float]:
        ways = [(epochs, blend) for epochs in self._epochs for blend in self._blends]
        losses = np.zeros((len(ways), len(self._dataset)))
        before = np.zeros(len(self._dataset))
        for kept, left in self._folds():
            self._model.set_adapter(self._start)
            before[left] = self._losses(left)
            for epoch, vector in enumerate(self._trained(kept, self._epochs[-1]), start=1):
                if epoch in self._epochs:
                    for blend in self._blends:
                        self._model.set_adapter(self._start + blend * (vector - self._start))
                        losses[ways.index((epoch, blend)), left] = self._losses(left)
                    self._model.set_adapter(vector)
            self._heard()
        best = int(losses.mean(axis=1).argmin())
        gain = before - losses[best]
        if keep and gain.mean() <= gain.std(ddof=1) / np.sqrt(len(gain)):
            return 0, 0.0
        return ways[best]

    def _folds(self) -> Iterator[tuple[Rows, Rows]]:
        """Yield rows to train on and rows to try on; a unit's records stay together."""
        _, units = np.unique(self._dataset.units, return_inverse=True)
        fold = self._random.permutation(units.max() + 1)[units] % _FOLDS
        for place in range(_FOLDS):
            yield np.flatnonzero(fold != place), np.flatnonzero(fold == place)

    def _trained(self, rows: Rows, epochs: int) -> Iterator[Vector]:
        """Yield the trained values (P,) after each epoch; the model holds them then."""
        vector = self._start
        rates = self._model.manifest.per_value(_ADAPTER_RATE, _HEAD_RATE)
        optimizer = Optimizer("adam", rates)
        self._model.set_adapter(vector)
        for _ in range(epochs):
            mixed = rows[self._random.permutation(len(rows))]
            for batch in np.array_split(mixed, max(1, len(mixed) // _BATCH)):
                vector = optimizer.step(vector, self._gradient(batch))
                self._model.set_adapter(vector)
            yield vector

    def _gradient(self, rows: Rows) -> Vector:
        total = np.zeros(self._model.manifest.length)
        for places, piece in by_width(self._dataset.batch(rows), _PIECE):
            attached = self._model.attach(self._dataset, rows[places.numpy()], piece)
            total += plain_gradient(self._model, record_losses(self._model, attached))
        return total / len(rows)

    @torch.no_grad()
    def _losses(self, rows: Rows) -> Vector:
        losses = np.zeros(len(rows))
        for places, piece in by_width(self._dataset.batch(rows), _PIECE):
            attached = self._model.attach(self._dataset, rows[places.numpy()], piece)
            found = record_losses(self._model, attached).double().cpu()
            losses[places.numpy()] = found.numpy()
        return losses
