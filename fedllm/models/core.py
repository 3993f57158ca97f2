"""A small matrix between the frozen B and A of an adapter (LoRA-XS, Balazy et al. 2024).

A layer's weights W are about U S V'. A is V', B is U S over the root of the mean square of S, so
that learning rates do not depend on how large the base's weights are; and the layer's output
gets B R A x, where R, rank by rank, starts at zero and is all that is trained. Nothing but the
base's own weights decides on A and B: a basis made of gradients would be made of records, and what
is sent in such a basis would depend on them beyond what its noise hides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedllm.errors import ConfigError
from fedllm.randomness import RandomStream

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

# Widths up to here are taken apart whole, which takes seconds at most.
_EXACT_WIDTH = 1024
_OVERSAMPLED, _ITERATIONS = 16, 8


def add_cores(adapted: PeftModel, seed: int) -> None:
    """Put a core into every adapter, in place; A and B are frozen at their basis.

    Raises
    ------
    ConfigError
        If a layer's weights cannot be read as numbers, or are all zero, or smaller than the rank.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        into = cast(nn.Linear, layer.lora_A["default"])
        out = cast(nn.Linear, layer.lora_B["default"])
        rank = into.out_features
        weights = _weights(layer, name)
        basis_a, basis_b = basis(weights, rank, RandomStream.seeded(seed, "core", name))
        for module, values in ((into, basis_a), (out, basis_b)):
            module.weight.requires_grad_(False)
            module.weight.copy_(values.float())
        add_core(layer)


def add_core(layer: LoraLayer) -> None:
    """Put a core, which is zero, between an adapter's A and B."""
    into = cast(nn.Linear, layer.lora_A["default"])
    core = nn.Linear(
        into.out_features,
        into.out_features,
        bias=False,
        dtype=torch.float32,
        device=into.weight.device,
    )
    nn.init.zeros_(core.weight)
    # A name among peft's own, and a module that hooks for per-sample gradients see as any.
    cast(nn.Module, layer).add_module("lora_R", nn.ModuleDict({"default": core}))
    into.register_forward_hook(_Through(core))


class _Through:
    """Sends what comes out of A through a core."""

    def __init__(self, core: nn.Linear) -> None:
        self._core = core

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self._core(output)  # type: ignore[no-any-return]


def basis(weights: Tensor, rank: int, stream: RandomStream) -> tuple[Tensor, Tensor]:
    """Return A (rank, inputs) and B (outputs, rank) of a layer, float64.

    The first singular vectors; of wide layers nearly so, by subspace iteration (Halko, Martinsson,
    Tropp 2011). The largest entry of each row of A is positive.

    Parameters
    ----------
    weights : float64 tensor (outputs, inputs)
        Of the frozen layer.
    rank : int
        At most the smaller width.
    stream : RandomStream
        Where the iteration starts.
    """
    sketched = min(weights.shape) > _EXACT_WIDTH
    small, turn = weights, None
    if sketched:
        width = min(rank + _OVERSAMPLED, *weights.shape)
        start = torch.from_numpy(stream.normal(weights.shape[1] * width))
        turn = weights @ start.reshape(weights.shape[1], width)
        for _ in range(_ITERATIONS):
            turn = weights @ torch.linalg.qr(weights.T @ torch.linalg.qr(turn).Q).Q
        turn = torch.linalg.qr(turn).Q
        small = turn.T @ weights
    left, sizes, right = torch.linalg.svd(small, full_matrices=False)
    left = left if turn is None else turn @ left
    left, sizes, right = left[:, :rank], sizes[:rank], right[:rank]
    largest = right.abs().argmax(dim=1, keepdim=True)
    signs = right.gather(1, largest).sign().squeeze(1)
    return right * signs[:, None], left * signs * (sizes / sizes.square().mean().sqrt())


def is_core(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether an adapter's tensors, by peft's names, hold cores."""
    return any("lora_R" in name for name in tensors)


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter without cores that does the same: each core is multiplied into its A."""
    return {
        name: tensors[name.replace("lora_A", "lora_R")] @ values
        if name.replace("lora_A", "lora_R") in tensors and "lora_A" in name
        else values
        for name, values in tensors.items()
        if "lora_R" not in name
    }


def _weights(layer: LoraLayer, name: str) -> Tensor:
    base = layer.get_base_layer()
    weights = cast(Tensor, base.weight)
    if not weights.dtype.is_floating_point or weights.dim() != 2:
        raise ConfigError(
            f"lora.method = 'core' needs the weights of {name} as numbers, and they are quantised",
            "take the base model in float32, bfloat16 or float16, or another lora.method",
        )
    if not bool(weights.any()):
        raise ConfigError(
            f"lora.method = 'core': the weights of {name} are all zero, without singular vectors",
            "leave that layer out of lora.target_modules",
        )
    values = weights.detach().double().cpu()
    return values.T if isinstance(base, Conv1D) else values
