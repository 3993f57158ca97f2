"""From pieces of text to a loss: next token, masked language model, span corruption.

An objective is a module around the model, so that DDP can wrap the whole computation. It
returns sums over the targets of a batch, one for each part of the loss; the loop divides
each by the number of its targets in the whole step, which makes accumulation over
microbatches and processes exact.
"""

from __future__ import annotations

import math
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
    """A model and how it is trained.

    ``parts`` names the terms of its loss, ``measures`` what is measured on held-out text:
    these terms, and shares of right answers if there are any.
    """

    parts: ClassVar[tuple[str, ...]]
    measures: ClassVar[tuple[str, ...]]

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

    def measure(self, batch: Batch) -> Tensor:
        """Return the sum of each measure over ``batch``, and over how many targets it goes.

        Returns
        -------
        Tensor
            float64 of shape (2, measures); the first measures are the parts of the loss.
        """
        return torch.stack([self(batch).double().cpu(), torch.tensor(self.targets(batch)).double()])


class NextToken(Objective):
    """Next-token prediction on packed rows, no document seeing another.

    Attention is block-diagonal over documents and positions restart with each, so the loss
    of a document does not depend on what stands beside it in the row.
    """

    parts = measures = ("loss",)

    def __init__(self, model: PreTrainedModel, boundary: int) -> None:
        super().__init__(model)
        self._boundary = boundary
        self._adds_mask = model.config._attn_implementation == "eager"

    def batch(self, pieces: Sequence[NDArray[np.int64]], random: Sequence[RandomStream]) -> Batch:
        """Return ``rows``, int64 (B, T + 1), with positions and mask of their documents.

        The mask is left out where causal attention alone is the same and the model has a
        fast kernel for that.
        """
        rows = torch.from_numpy(np.stack(pieces))
        inputs = rows[:, :-1]
        positions, mask = document_attention(inputs, self._boundary)
        batch = {"rows": rows, "positions": positions}
        if self._adds_mask or bool((inputs[:, 1:] == self._boundary).any()):
            batch["mask"] = mask
        return batch

    def targets(self, batch: Batch) -> tuple[int, ...]:
        """Count T targets a row: the packed stream has no padding."""
        rows = batch["rows"]
        return (rows.shape[0] * (rows.shape[1] - 1),)

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed loss of all B * T targets."""
        inputs, targets = batch["rows"][:, :-1], batch["rows"][:, 1:]
        mask = batch.get("mask")
        if mask is not None and self._adds_mask:
            mask = additive_mask(mask)
        logits = self.model(
            input_ids=inputs, position_ids=batch["positions"], attention_mask=mask, use_cache=False
        ).logits
        return torch.stack([summed_cross_entropy(logits.flatten(0, 1), targets.flatten())])


def additive_mask(mask: Tensor) -> Tensor:
    """Turn a boolean mask into one that is added to scores: 0 where true, else minus infinity.

    It has the dtype of the scores, so that they are not widened by the addition.
    """
    kind = mask.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)


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


def document_attention(inputs: Tensor, boundary: int) -> tuple[Tensor, Tensor]:
    """Return positions and attention mask of packed rows.

    Parameters
    ----------
    inputs : Tensor
        int64 of shape (B, T); each ``boundary`` begins a document.

    Returns
    -------
    (Tensor, Tensor)
        Positions that restart at each document, int64 (B, T). A boolean mask (B, 1, T, T),
        true where a token may look: earlier in its own document.
    """
    index = torch.arange(inputs.shape[1], device=inputs.device)
    first = torch.where(inputs == boundary, index, 0).cummax(dim=1).values
    same = first[:, :, None] == first[:, None, :]
    return index - first, (same & (index[:, None] >= index[None, :]))[:, None]
