"""From pieces of text to a loss: next token, masked language model, span corruption.

An objective is a module around the model, so that DDP can wrap the whole computation. It
returns sums over the targets of a batch, one for each part of the loss; the loop divides
each by the number of its targets in the whole step, which makes accumulation over
microbatches and processes exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedllm.randomness import RandomStream

Batch = dict[str, Tensor]
IGNORED = -100


class Objective(nn.Module, ABC):
    """A model and how it is trained; ``parts`` names the terms of its loss."""

    parts: ClassVar[tuple[str, ...]]

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def batch(self, pieces: Sequence[NDArray[np.int64]], random: Sequence[RandomStream]) -> Batch:
        """Make the tensors of some pieces of equal shape, each with its random stream."""

    @abstractmethod
    def targets(self, batch: Batch) -> tuple[int, ...]:
        """Count the targets that each part of the loss of ``batch`` sums over."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the summed parts of the loss in nats, fp32 of shape (parts,)."""


class NextToken(Objective):
    """Next-token prediction on packed rows, no document seeing another.

    Attention is block-diagonal over documents and positions restart with each, so the loss
    of a document does not depend on what stands beside it in the row.
    """

    parts = ("loss",)

    def __init__(self, model: PreTrainedModel, boundary: int) -> None:
        super().__init__(model)
        self._boundary = boundary

    def batch(self, pieces: Sequence[NDArray[np.int64]], random: Sequence[RandomStream]) -> Batch:
        """Return ``rows``, int64 of shape (B, T + 1)."""
        return {"rows": torch.from_numpy(np.stack(pieces))}

    def targets(self, batch: Batch) -> tuple[int, ...]:
        """Count T targets a row: the packed stream has no padding."""
        rows = batch["rows"]
        return (rows.shape[0] * (rows.shape[1] - 1),)

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed loss of all B * T targets."""
        inputs, targets = batch["rows"][:, :-1], batch["rows"][:, 1:]
        positions, mask = document_attention(inputs, self._boundary)
        logits = self.model(
            input_ids=inputs, position_ids=positions, attention_mask=mask, use_cache=False
        ).logits
        return summed_cross_entropy(logits.flatten(0, 1), targets.flatten())[None]


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed loss in nats; targets of `IGNORED` count nothing.

    Parameters
    ----------
    logits : Tensor
        Of shape (N, vocabulary), any floating dtype; the loss is computed in fp32.
    targets : Tensor
        int64 of shape (N,).
    """
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def document_attention(inputs: Tensor, boundary: int) -> tuple[Tensor, Tensor | None]:
    """Return positions and attention mask of packed rows.

    Parameters
    ----------
    inputs : Tensor
        int64 of shape (B, T); each ``boundary`` begins a document.

    Returns
    -------
    (Tensor, Tensor or None)
        Positions that restart at each document, int64 (B, T). A boolean mask (B, 1, T, T),
        true where a token may look: earlier in its own document. None if no row has a
        boundary after its first token, for which causal attention alone is the same.
    """
    length = inputs.shape[1]
    index = torch.arange(length, device=inputs.device)
    starts = inputs == boundary
    first = torch.where(starts, index, 0).cummax(dim=1).values
    if not bool(starts[:, 1:].any()):
        return index.expand_as(inputs), None
    same = first[:, :, None] == first[:, None, :]
    return index - first, (same & (index[:, None] >= index[None, :]))[:, None]
