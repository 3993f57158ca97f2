"""The peer of the pretraining benchmarks: a Llama-type model written in an afternoon.

Plain PyTorch in the manner of nanoGPT (Karpathy 2022): rows are cut anywhere from one stream
of tokens, attention crosses document boundaries, one AdamW for everything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

HEAD_WIDTH = 64


class _Layer(nn.Module):
    cos: torch.Tensor
    sin: torch.Tensor
    later: torch.Tensor

    def __init__(self, width: int, inner: int, length: int, products: bool) -> None:
        super().__init__()
        self.products = products
        self.register_buffer("later", torch.ones(length, length, dtype=torch.bool).triu(1))
        self.heads = width // HEAD_WIDTH
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        angles = torch.outer(
            torch.arange(length).float(), 1e4 ** (-torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
        ).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, dim=-1)
        turned = torch.cat((-right, left), dim=-1)
        return x * self.cos[: x.shape[-2]] + turned * self.sin[: x.shape[-2]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attention, then the gated layers; ``(rows, length, width)`` to the same."""
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        q, k = self._rotate(q).to(v.dtype), self._rotate(k).to(v.dtype)
        if self.products:
            scores = (q @ k.mT * HEAD_WIDTH**-0.5).masked_fill(
                self.later[:length, :length], float("-inf")
            )
            mixed = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class PlainLlama(nn.Module):
    """Token ids ``(rows, length)`` to logits ``(rows, length, vocabulary)``.

    With ``products`` attention is plain matrix products instead of PyTorch's fused kernel.
    """

    def __init__(
        self,
        vocabulary: int,
        layers: int,
        width: int,
        inner: int,
        length: int,
        products: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(
            *(_Layer(width, inner, length, products) for _ in range(layers))
        )
        self.norm = nn.RMSNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("out.weight", "down.weight"))
                scale = (2 * layers) ** -0.5 if into_residual else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next token at each place."""
        return F.linear(self.norm(self.layers(self.embed(ids))), self.embed.weight)


def plain_step(
    run: Callable[[torch.Tensor], torch.Tensor],
    model: PlainLlama,
    optimizer: torch.optim.Optimizer,
    rows: torch.Tensor,
) -> torch.Tensor:
    """Take one step on ``rows`` of shape ``(rows, length + 1)``; return the loss (nats)."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = run(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def random_rows(stream: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """Cut rows of ``length + 1`` tokens anywhere from the stream."""
    starts = torch.randint(len(stream) - length - 1, (rows,)).tolist()
    return torch.stack([stream[i : i + length + 1] for i in starts])
