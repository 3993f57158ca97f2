"""A causal Transformer with its own head, which says what token comes next."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedllm.models.readout import Readout
from fedllm.models.transformer import Batch, LayerStack

# So few that the trial of a model's parts has several pieces.
_TRIED_AT_ONCE = 3


class LanguageModel(nn.Module):
    """A causal Transformer with its own, frozen, language model head.

    Parameters
    ----------
    backbone : PreTrainedModel
        Transformer with the head.
    stack : LayerStack
        Its layers; one of them at least is trained.
    """

    one_vector = False

    def __init__(self, backbone: PreTrainedModel, stack: LayerStack) -> None:
        super().__init__()
        self.backbone = backbone
        self.stack = stack
        self.readout = Readout(backbone, backbone.get_decoder())

    def prefix(self, batch: Batch) -> Tensor:
        """Run what is frozen; returns states (B, T, H)."""
        return self.stack.below(batch)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits where a next token counts, of all these tokens at once.

        Returns
        -------
        logits : Tensor
            (N, V), float32, one row for each of the N tokens that count.
        targets : Tensor
            (N,), int64.
        rows : Tensor
            (N,), int64: the record of the batch that the token belongs to.
        """
        states, targets, rows = self._counted(batch)
        return self.readout.logits(states).float(), targets, rows

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss where a next token counts, a piece of these tokens at a time.

        Returns
        -------
        losses : Tensor
            (N,), float32, in nats.
        rows : Tensor
            (N,), int64: the record of the batch that the token belongs to.
        """
        states, targets, rows = self._counted(batch)
        return self.readout.losses(states, targets), rows

    def before_loss(self, batch: Batch) -> Tensor:
        """Return logits (B, T - 1, V) of the next tokens, as pieces give them."""
        states = self._states(batch)[:, :-1]
        pieces = states.flatten(0, 1).split(_TRIED_AT_ONCE)
        return torch.cat([self.readout.logits(piece) for piece in pieces]).unflatten(
            0, states.shape[:2]
        )

    def following(self, batch: Batch) -> Tensor:
        """Return the logits (B, V) of what follows the last token of each row."""
        return self.readout.logits(self._states(batch)[:, -1])

    def _counted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        targets = batch["labels"][:, 1:]
        rows, places = torch.nonzero(targets != -100, as_tuple=True)
        return self._states(batch)[rows, places], targets[rows, places], rows

    def _states(self, batch: Batch) -> Tensor:
        with self.stack.entered_by(batch["states"]) if "states" in batch else nullcontext():
            return self.readout.states(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
