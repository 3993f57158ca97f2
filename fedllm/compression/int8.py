"""Linear layers and embeddings that compute with integers of 8 bits, for models that are only used.

Each output's weights are integers times a scale; what comes in is rounded token by token, each with
a scale of its own, as it arrives (LLM.int8: Dettmers et al. 2022, without its outliers), so that
nothing needs to be calibrated, and the product is one of integers. Embeddings are rounded row by
row: in a small model they are most of its bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedllm.compression.linears import rows_by_output

_LARGEST = 127
_TRIED = 4


def rounded(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers from -127 to 127 and the scale of each row.

    Parameters
    ----------
    values : Tensor
        (R, C), of floating point.

    Returns
    -------
    tuple of Tensor
        int8 (R, C), and float32 (R, 1) above zero.
    """
    values = values.float().contiguous()
    scales = values.abs().amax(dim=-1, keepdim=True).div_(_LARGEST)
    # A row of zeros has any scale; one of 0 would make it none.
    scales.masked_fill_(scales == 0, 1.0)
    return (values / scales).round_().type(torch.int8), scales


class IntegerLinear(nn.Module, ABC):
    """A linear layer whose weights are integers; gives what it was given in.

    Parameters
    ----------
    inputs, outputs : int
        Its widths.
    bias : bool
        Whether there is one.
    """

    scales: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self._make_empty()
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)

    @classmethod
    def of(cls, plain: nn.Linear | Conv1D) -> Self:
        """Round a layer."""
        made = cls.like(plain)
        made._round(rows_by_output(plain))
        if plain.bias is not None:
            made.bias = plain.bias.detach().float()
        return made

    @classmethod
    def like(cls, plain: nn.Linear | Conv1D) -> Self:
        """Return an empty layer of the size of another."""
        outputs, inputs = rows_by_output(plain).shape
        return cls(inputs, outputs, plain.bias is not None)

    @abstractmethod
    def _make_empty(self) -> None:
        """Register integers and scales."""

    @abstractmethod
    def _round(self, rows: Tensor) -> None:
        """Take over weights (outputs, inputs)."""


class Int8Linear(IntegerLinear):
    """A linear layer of 8 bits that rounded states meet."""

    weight: Tensor

    def _make_empty(self) -> None:
        shape = (self.out_features, self.in_features)
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(self.out_features, 1))

    def _round(self, rows: Tensor) -> None:
        self.weight, self.scales = rounded(rows)

    def forward(self, states: Tensor) -> Tensor:
        """Return (..., outputs) of states (..., inputs)."""
        codes, scales = rounded(states.reshape(-1, self.in_features))
        product = torch._int_mm(codes, self.weight.T).float()
        product.mul_(scales).mul_(self.scales.T)
        if self.bias is not None:
            product.add_(cast(Tensor, self.bias))
        return product.type(states.dtype).reshape(*states.shape[:-1], self.out_features)


class Int8Embedding(nn.Module):
    """A table whose rows are integers times a scale.

    Parameters
    ----------
    rows, width : int
        Of the table.
    dtype : torch.dtype
        Of what it gives.
    factored : bool
        Whether what it gives is multiplied by one number more, as Gemma's is.
    """

    weight: Tensor
    scales: Tensor
    factor: Tensor | None

    def __init__(self, rows: int, width: int, dtype: torch.dtype, factored: bool) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self._dtype = rows, width, dtype
        self.register_buffer("weight", torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(rows, 1))
        self.register_buffer("factor", torch.ones(()) if factored else None)

    @classmethod
    def of(cls, plain: nn.Embedding) -> Int8Embedding:
        """Round a table."""
        made = cls.like(plain)
        made.weight, made.scales = rounded(plain.weight.detach())
        if made.factor is not None:
            made.factor = factor_of(plain).float()
        return made

    @classmethod
    def like(cls, plain: nn.Embedding) -> Int8Embedding:
        """Return an empty table of the size and kind of another."""
        factored = type(plain) is not nn.Embedding
        return cls(plain.num_embeddings, plain.embedding_dim, plain.weight.dtype, factored)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (..., width) of numbers of rows (...)."""
        found = (self.weight[ids].float() * self.scales[ids]).type(self._dtype)
        return found if self.factor is None else found * self.factor.type(self._dtype)


def is_table(part: nn.Module) -> bool:
    """Tell whether a part is a table of embeddings, or one whose rows are multiplied by a number.

    One of a class of its own is tried on other rows: it may do something else with them.
    """
    if type(part) is nn.Embedding:
        return True
    if not isinstance(part, nn.Embedding) or getattr(part, "embed_scale", None) is None:
        return False
    like: dict[str, Any] = {"dtype": part.weight.dtype, "device": part.weight.device}
    count = max(_TRIED, 1 + (part.padding_idx or 0))
    rows = torch.linspace(-1, 1, count * part.embedding_dim, **like).reshape(count, -1)
    try:
        found = torch.func.functional_call(
            part, {"weight": rows}, (torch.arange(count, device=rows.device),)
        )
    except TypeError:  # it asks for more than numbers of rows
        return False
    return bool(torch.equal(found, rows * factor_of(part).type(rows.dtype)))


def factor_of(part: nn.Embedding) -> Tensor:
    """Return the number, (), by which a table of a class of its own multiplies its rows."""
    return torch.as_tensor(cast(Any, part).embed_scale).detach().clone()
