"""The loss of each record, by task."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch, TextClassifier


def record_losses(model: SharedModel, batch: Batch) -> Tensor:
    """Return one loss a record, (B,), float32, in nats.

    Classification: cross-entropy. Causal and instruction: cross-entropy of the next token,
    averaged over the tokens of the record that count (label not -100); a record without any
    counts 0.
    """
    if isinstance(model.module, TextClassifier):
        return cross_entropy(model.module(batch), batch["labels"], reduction="none")
    losses, rows = token_losses(model, batch)
    size = len(batch["labels"])
    counts = torch.bincount(rows, minlength=size).clamp(min=1)
    return losses.new_zeros(size).index_add_(0, rows, losses) / counts


def token_losses(model: SharedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of each token that counts, (N,), and the record it belongs to, (N,)."""
    logits, targets, rows = model.module(batch)
    return cross_entropy(logits, targets, reduction="none"), rows
