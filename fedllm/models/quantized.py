"""Frozen linear layers whose weights are held as integers of 8 or 4 bits.

A group of weights that one output multiplies, all of them with 8 bits and 32 with 4, is a scale
times integers from -128 to 127, or from -8 to 7. The scale makes the group's largest weight the
lowest integer, sign included, so that none is left unused (the rule of llama.cpp's Q4_0), and is a
number of bfloat16. All of it is done number by number, by operations that every processor rounds
alike: parties that quantise the same weights hold the same base model, and no library or kernel
decides what it is.

A layer is made of plain numbers each time it is used, in the backward pass once more, so that
never more than one is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.config import Quantization
from fedllm.errors import ConfigError

_BITS: dict[Quantization, int] = {"int8": 8, "int4": 4}
_GROUP = 32


def quantize_layers(
    model: PreTrainedModel, lists: Sequence[str], quantization: Quantization
) -> None:
    """Quantise the linear layers of a frozen Transformer's layers, in place.

    Embeddings, norms, heads, and weights that lie in no linear layer, such as those of some
    experts, stay as they are.

    Parameters
    ----------
    model : PreTrainedModel
        With a head or without.
    lists : sequence of str
        Dotted names of the lists of layers in its base.

    Raises
    ------
    ConfigError
        If there is no linear layer in them.
    """
    if quantization == "none":
        return
    stack = model.base_model
    found = [
        f"{inside}.{name}"
        for inside in lists
        for name, part in stack.get_submodule(inside).named_modules()
        # A class of its own may do something else with its weights.
        if type(part) in (nn.Linear, Conv1D)
    ]
    if not found:
        raise ConfigError(
            f"model.quantization = {quantization!r}: the layers of {model.config.model_type!r} "
            "models have no plain linear layers to quantise",
            "leave model.quantization out, or use another model",
        )
    for name in found:
        above, _, own = name.rpartition(".")
        plain = cast(nn.Linear | Conv1D, stack.get_submodule(name))
        setattr(stack.get_submodule(above), own, QuantizedLinear(plain, _BITS[quantization]))
    # As long as one of them lies in the mapped file, all that was read of it counts as memory.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


class QuantizedLinear(nn.Linear):
    """A frozen linear layer that holds its weights as integers.

    Parameters
    ----------
    plain : nn.Linear or Conv1D
        What it does, but for rounding.
    bits : int
        8 or 4.
    """

    def __init__(self, plain: nn.Linear | Conv1D, bits: int) -> None:
        nn.Module.__init__(self)
        weights = plain.weight.detach()
        weights = weights.T if isinstance(plain, Conv1D) else weights
        self.out_features, self.in_features = weights.shape
        self._packed = bits == 4
        codes, scales = quantize(weights, bits, _GROUP if self._packed else self.in_features)
        self.codes = _frozen(pack(codes) if self._packed else codes)
        self.scales = _frozen(scales.to(weights.dtype))
        self.bias = plain.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The numbers (outputs, inputs) that the integers stand for."""
        return self.factor() if self._packed else self.factor().mul_(self.scales.flatten(1))

    def factor(self) -> Tensor:
        """Return what states are multiplied by, (outputs, inputs): of 4 bits the weights.

        Of 8 bits the integers, for what comes out has one scale, and is far less than the weights.
        """
        if not self._packed:
            return self.codes.flatten(1).to(self.scales.dtype)
        values = unpack(self.codes).to(self.scales.dtype).mul_(self.scales)
        return values.flatten(1)[:, : self.in_features]

    @property
    def parameters_saved(self) -> int:
        """How many parameters fewer it has than weights."""
        held = self.codes.numel() + self.scales.numel()
        return self.out_features * self.in_features - held

    def forward(self, states: Tensor) -> Tensor:
        """Return the layer's output; its gradient by ``states`` keeps no weights."""
        product = cast(Tensor, _Product.apply(states, self))
        if not self._packed:
            product = product * self.scales.flatten()
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """Takes a layer's factor when it is needed, instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return linear(states, layer.factor())

    @staticmethod
    def backward(ctx: FunctionCtx, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0] @ cast(Any, ctx).layer.factor(), None


def quantize(weights: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Return integers and scales whose product is about ``weights``.

    Parameters
    ----------
    weights : Tensor
        (O, I).
    group : int
        Weights that share a scale.

    Returns
    -------
    codes : int8 Tensor
        (O, G, ``group``); what the last group lacks is zero.
    scales : float32 Tensor
        (O, G, 1), numbers of bfloat16.
    """
    lowest = -(2 ** (bits - 1))
    groups = pad(weights.float(), (0, -weights.shape[1] % group)).unflatten(1, (-1, group))
    top, bottom = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    scales = (torch.where(top >= -bottom, top, bottom) / lowest).bfloat16().float()
    # Nothing but zeros has no scale.
    codes = (groups / scales).round_().nan_to_num_(0.0).clamp_(lowest, -lowest - 1)
    return codes.to(torch.int8), scales


def pack(codes: Tensor) -> Tensor:
    """Put integers of 4 bits, (..., N) int8, two in a byte, (..., N / 2) int8."""
    low, high = codes.chunk(2, dim=-1)
    return (low & 15) | (high << 4)


def unpack(packed: Tensor) -> Tensor:
    """Return the integers (..., N) int8 that `pack` put together."""
    # Shifted to the left and back, a negative number keeps its sign.
    return torch.cat(((packed << 4) >> 4, packed >> 4), dim=-1)


def parameters_of(model: nn.Module) -> int:
    """Count the parameters that a model stands for, each weight of a quantised layer as one."""
    held = sum(parameter.numel() for parameter in model.parameters())
    return held + sum(
        part.parameters_saved for part in model.modules() if isinstance(part, QuantizedLinear)
    )


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
