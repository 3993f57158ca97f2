"""The head of a classifier, as fedllm trains it. Scripts of exports have it as it stands here."""

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize


class Head(torch.nn.Module):
    """Pools a Transformer's last states, gives them a length, and weighs them."""

    def __init__(self, tensors: dict[str, Tensor], pooling: str, scale: float) -> None:
        super().__init__()
        self.pooling, self.scale = pooling, scale
        self.weight, self.bias = tensors["weight"], tensors["bias"]
        self.center = tensors.get("center")

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return logits of states (B, T, H); the mask (B, T) is 0 where there is padding."""
        states = states.float()
        if self.pooling == "mean":
            states = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        elif self.pooling == "cls":
            states = states[:, 0]
        elif self.pooling == "last":
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
            states = states[torch.arange(mask.shape[0], device=mask.device), last]
        if self.center is not None:
            states = normalize(states, dim=-1) - self.center
        if self.scale:
            states = self.scale * normalize(states, dim=-1)
        return linear(states, self.weight, self.bias)
