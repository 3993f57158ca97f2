"""How good the shared model is on a public data set."""

from __future__ import annotations

from math import exp

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fedllm.errors import DataError
from fedllm.models.prefix import Dataset, by_length
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch, TextClassifier
from fedllm.training.objectives import token_losses

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


def _sums(model: SharedModel, batch: Batch) -> tuple[float, float, int]:
    if not isinstance(model.module, TextClassifier):
        losses, _ = token_losses(model, batch)
        return float(losses.double().sum()), 0.0, len(losses)
    logits, labels = model.module(batch), batch["labels"]
    losses = cross_entropy(logits, labels, reduction="none")
    return float(losses.double().sum()), float((logits.argmax(1) == labels).sum()), len(labels)
