"""Train a model as it will answer once it is rounded (Jacob et al. 2018).

Each pass uses the numbers that the integers would stand for; gradients go on as if nothing had
been rounded (straight through: Bengio et al. 2013). What is rounded, and how, is what
`fedllm.compression.integers.to_integers` will make of the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers.pytorch_utils import Conv1D

from fedllm.compression.int8 import factor_of, rounded
from fedllm.compression.integers import Integers, parts, put
from fedllm.compression.linears import Linear
from fedllm.compression.weight_only import GROUP
from fedllm.models.quantized import quantize


@contextmanager
def as_if_rounded(model: nn.Module, held: Integers) -> Iterator[None]:
    """Let a model compute as `to_integers` would have it; its weights stay what they are."""
    tables, layers = parts(model)
    tied = {id(table.weight) for table in tables.values()}
    for name, table in tables.items():
        put(model, name, _Table(table))
    for name, layer in layers.items():
        # As a table of 8 bits serves it.
        four = held == "int4" and id(layer.weight) not in tied
        put(model, name, _Layer(layer, four, held == "int8"))
    try:
        yield
    finally:
        for name, plain in (tables | layers).items():
            put(model, name, plain)


class _Table(nn.Module):
    """A table whose rows are rounded."""

    def __init__(self, plain: nn.Embedding) -> None:
        super().__init__()
        self.plain = plain
        self._factor = 1.0 if type(plain) is nn.Embedding else float(factor_of(plain))

    @property
    def weight(self) -> Tensor:
        """The numbers that are trained."""
        return self.plain.weight

    def forward(self, ids: Tensor) -> Tensor:
        rows = embedding(ids, self.plain.weight, self.plain.padding_idx)
        return _straight(rows, _in_8_bits(rows)) * self._factor


class _Layer(nn.Module):
    """A linear layer whose weights are rounded, and its states too if asked."""

    def __init__(self, plain: Linear, four_bits: bool, states: bool) -> None:
        super().__init__()
        self.plain = plain
        self._four_bits, self._states = four_bits, states

    @property
    def weight(self) -> Tensor:
        """The numbers that are trained."""
        return self.plain.weight

    def forward(self, states: Tensor) -> Tensor:
        weights = self.plain.weight
        weights = weights.T if isinstance(self.plain, Conv1D) else weights
        near = _in_4_bits(weights) if self._four_bits else _in_8_bits(weights)
        if self._states:
            states = _straight(states, _in_8_bits(states))
        return linear(states, _straight(weights, near), self.plain.bias)


def _straight(values: Tensor, near: Tensor) -> Tensor:
    return values + (near - values).detach()


def _in_8_bits(values: Tensor) -> Tensor:
    codes, scales = rounded(values.detach())
    return codes * scales


def _in_4_bits(weights: Tensor) -> Tensor:
    codes, scales = quantize(weights.detach(), 4, GROUP)
    return (codes * scales).flatten(1)[:, : weights.shape[1]]
