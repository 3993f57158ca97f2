"""A causal Transformer with its own head, which says what token comes next."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedllm.models.readout import TokenModel
from fedllm.models.transformer import Batch, LayerStack


class LanguageModel(TokenModel):
    """A causal Transformer with its own, frozen, language model head.

    Parameters
    ----------
    backbone : PreTrainedModel
        Transformer with the head.
    stack : LayerStack
        Its layers; one of them at least is trained.
    """

    def __init__(self, backbone: PreTrainedModel, stack: LayerStack) -> None:
        super().__init__(backbone)
        self.stack = stack

    def prefix(self, batch: Batch) -> Tensor:
        """Run what is frozen; returns states (B, T, H)."""
        return self.stack.below(batch)

    def before_loss(self, batch: Batch) -> Tensor:
        """Return logits (B, T - 1, V) of the next tokens, as pieces give them."""
        return self.tried(self._states(batch)[:, :-1])

    def counted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states before each token that counts; see the base class."""
        targets = batch["labels"][:, 1:]
        rows, places = torch.nonzero(targets != -100, as_tuple=True)
        return self._states(batch)[rows, places], targets[rows, places], rows

    def _states(self, batch: Batch) -> Tensor:
        with self.stack.entered_by(batch["states"]) if "states" in batch else nullcontext():
            return self.readout.states(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
