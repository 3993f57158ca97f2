"""How good the shared model is on a public data set."""

from __future__ import annotations

from math import exp

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from fedllm.data.encode import EncodedDataset
from fedllm.errors import DataError
from fedllm.models.prefix import Dataset, by_length
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch, TextClassifier
from fedllm.training.objectives import record_losses, token_losses

_CHUNK = 1024


@torch.no_grad()
def evaluate(model: SharedModel, dataset: Dataset, batch_size: int = 64) -> dict[str, float]:
    """Measure the model on all records of ``dataset``.

    Returns
    -------
    dict
        ``records``, and ``loss``: mean nats a record for classification, a token otherwise.
        Classification has ``accuracy``; other tasks have ``perplexity`` and ``tokens``.

    Raises
    ------
    DataError
        If there is no record, or no token that counts.
    """
    sums = np.zeros(3)  # loss, correct, records or tokens
    for start in range(0, len(dataset), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(dataset)))
        for places, piece in by_length(dataset.batch(indices), batch_size):
            sums += _sums(model, model.prefix.attach(dataset, indices[places.numpy()], piece))
    loss, correct, count = sums.tolist()
    if count == 0:
        raise DataError(
            "there is nothing to evaluate: the test data has no record or no token that counts",
            "check data.test and model.max_length",
        )
    if isinstance(model.module, TextClassifier):
        return {
            "loss": loss / count,
            "accuracy": correct / count,
            "records": float(len(dataset)),
        }
    return {
        "loss": loss / count,
        "perplexity": exp(min(loss / count, 700.0)),
        "tokens": count,
        "records": float(len(dataset)),
    }


@torch.no_grad()
def unit_scores(
    model: SharedModel, dataset: EncodedDataset, batch_size: int = 64
) -> NDArray[np.float64]:
    """Return for each unit its records' mean loss and the share that is right.

    Returns
    -------
    float64 array (U, 2)
        Loss in nats (of a token, unless the task is classification); the second column is 0
        for tasks without a label.
    """
    scores = np.zeros((len(dataset), 2))
    for start in range(0, len(dataset), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(dataset)))
        for places, piece in by_length(dataset.batch(indices), batch_size):
            rows = indices[places.numpy()]
            batch = model.prefix.attach(dataset, rows, piece)
            if isinstance(model.module, TextClassifier):
                logits, labels = model.module(batch), batch["labels"]
                scores[rows, 0] = cross_entropy(logits, labels, reduction="none").double().numpy()
                scores[rows, 1] = (logits.argmax(1) == labels).double().numpy()
            else:
                scores[rows, 0] = record_losses(model, batch).double().numpy()
    counts = np.bincount(dataset.units)
    sums = [np.bincount(dataset.units, weights=column) for column in scores.T]
    return np.stack(sums, axis=1) / counts[:, None]


def _sums(model: SharedModel, batch: Batch) -> tuple[float, float, int]:
    if not isinstance(model.module, TextClassifier):
        losses, _ = token_losses(model, batch)
        return float(losses.double().sum()), 0.0, len(losses)
    logits, labels = model.module(batch), batch["labels"]
    losses = cross_entropy(logits, labels, reduction="none")
    return float(losses.double().sum()), float((logits.argmax(1) == labels).sum()), len(labels)
