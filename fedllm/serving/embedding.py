"""Vectors of texts: what an encoder gives, pooled, of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedllm.models.pieces import by_width
from fedllm.models.shared import SharedModel

_ROWS = 32


class Embedding:
    """Makes vectors of texts with the pooling of a classifier's model.

    Parameters
    ----------
    model : SharedModel
        With features of whole texts.
    max_length : int
        Tokens read of a text.
    """

    def __init__(self, model: SharedModel, max_length: int) -> None:
        self._model = model
        self._max_length = max_length

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Return vectors (N, H), float32, and how many tokens were read."""
        encoded = self._model.tokenizer(
            list(texts),
            truncation=True,
            max_length=self._max_length,
            padding=True,
            return_tensors="pt",
        )
        batch = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        module: Any = self._model.module
        found = [Tensor()] * len(texts)
        for places, piece in by_width(batch, _ROWS):
            rows = normalize(module.features(self._model.moved(piece)).float(), dim=-1).cpu()
            for place, row in zip(places.tolist(), rows, strict=True):
                found[place] = row
        return torch.stack(found), int(batch["attention_mask"].sum())
