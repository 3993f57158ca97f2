"""A Transformer with a trained head on each token's own state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedllm.models.transformer import Batch, LayerStack


class TokenClassifier(nn.Module):
    """A Transformer and a linear head in float32 that sees each token's last state.

    In an encoder that state knows the whole text; in a decoder only what stands before the token,
    and the token.

    Parameters
    ----------
    backbone : PreTrainedModel
        Transformer without a head.
    stack : LayerStack
        Its layers.
    number_of_tags : int
        Outputs of the head; it starts at zero, so that every tag is equally likely.
    feature_scale : float
        Length that each token's state is normalised to; 0 leaves it as it is.
    """

    one_vector = False

    def __init__(
        self,
        backbone: PreTrainedModel,
        stack: LayerStack,
        number_of_tags: int,
        feature_scale: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stack = stack
        self.feature_scale = feature_scale
        self.head = nn.Linear(stack.width, number_of_tags, device=backbone.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def prefix(self, batch: Batch) -> Tensor:
        """Run what is frozen; returns states (B, T, H)."""
        return self.stack.below(batch)

    def before_loss(self, batch: Batch) -> Tensor:
        """Return what the Transformer itself gives: states (B, T, H)."""
        return self.stack.last_states(batch)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (B, T, C), float32; ``batch["states"]`` may hold `prefix`'s result."""
        if self.stack.first == len(self.stack.layers):
            with torch.no_grad():
                states = self.stack.last_states(batch)
        else:
            states = self.stack.last_states(batch)
        states = states.to(self.head.weight.dtype)
        if self.feature_scale:
            states = self.feature_scale * nn.functional.normalize(states, dim=-1)
        return self.head(states)
