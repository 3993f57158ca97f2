"""Linear layers and embeddings that compute with integers of 8 bits, for models that are only used.

Each output's weights are integers times a scale; what comes in is rounded token by token, each with
a scale of its own, as it arrives (LLM.int8: Dettmers et al. 2022, without its outliers), so that
nothing needs to be calibrated, and the product is one of integers. Embeddings are rounded row by
row: in a small model they are most of its bytes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedllm.errors import ConfigError

_LARGEST = 127


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
    values = values.float()
    scales = values.abs().amax(dim=-1, keepdim=True).div_(_LARGEST)
    # A row of zeros has any scale; one of 0 would make it none.
    scales.masked_fill_(scales == 0, 1.0)
    return (values / scales).round_().type(torch.int8), scales


class Int8Linear(nn.Module):
    """A linear layer on integers; gives what it was given in: the same type of numbers.

    Parameters
    ----------
    inputs, outputs : int
        Its widths.
    bias : bool
        Whether there is one.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(outputs, 1))
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)

    @classmethod
    def of(cls, plain: nn.Linear | Conv1D) -> Int8Linear:
        """Round a layer."""
        weights = plain.weight.detach()
        weights = weights.T if isinstance(plain, Conv1D) else weights
        made = cls(weights.shape[1], weights.shape[0], plain.bias is not None)
        made.weight, made.scales = rounded(weights)
        if plain.bias is not None:
            made.bias = plain.bias.detach().float()
        return made

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
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self._dtype = rows, width, dtype
        self.register_buffer("weight", torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(rows, 1))

    @classmethod
    def of(cls, plain: nn.Embedding) -> Int8Embedding:
        """Round a table."""
        made = cls(plain.num_embeddings, plain.embedding_dim, plain.weight.dtype)
        made.weight, made.scales = rounded(plain.weight.detach())
        return made

    def forward(self, ids: Tensor) -> Tensor:
        """Return (..., width) of numbers of rows (...)."""
        return (self.weight[ids].float() * self.scales[ids]).type(self._dtype)


def to_int8(model: nn.Module) -> int:
    """Round a model's plain linear layers and embeddings, in place; it can be used, not trained.

    A head that is tied to the embeddings is rounded with them, and both are one table.

    Returns
    -------
    int
        How many parts were rounded.

    Raises
    ------
    ConfigError
        If there is none, or if it is rounded already.
    """
    found = [
        (name, part)
        for name, part in model.named_modules()
        if type(part) in (nn.Linear, nn.Embedding, Conv1D)
    ]
    if any(isinstance(part, Int8Linear | Int8Embedding) for part in model.modules()):
        raise ConfigError("the model is quantised already", "quantise the one that it was made of")
    if not found:
        raise ConfigError(
            "the model has no plain linear layers or embeddings", "use fedllm compress distill"
        )
    tables: dict[int, Int8Embedding] = {}
    for name, part in found:
        if isinstance(part, nn.Embedding):
            tables[id(part.weight)] = new = Int8Embedding.of(part)
            _put(model, name, new)
    for name, part in found:
        if isinstance(part, nn.Embedding):
            continue
        layer = Int8Linear.of(cast(nn.Linear, part))
        if (tied := tables.get(id(part.weight))) is not None:
            layer.weight, layer.scales = tied.weight, tied.scales
        _put(model, name, layer)
    return len(found)


def _put(model: nn.Module, name: str, part: nn.Module) -> None:
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, part)
