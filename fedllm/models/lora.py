"""LoRA adapters (Hu et al. 2021) put into the layers of a frozen Transformer."""

from __future__ import annotations

from math import fsum, sqrt
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.config import LoraSection
from fedllm.errors import ConfigError
from fedllm.models.architecture import Architecture
from fedllm.models.core import add_core, add_cores
from fedllm.randomness import RandomStream

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

# Row length of an orthogonal A: with it the start has the same Frobenius norm as the usual one has
# on average, so that learning rates keep their meaning.
ORTHONORMAL_SCALE = 1 / sqrt(3)
_ORTHONORMAL = ("ffa_orthonormal", "fedsvd")


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """Return the adapted layers of a model by their names, in its order."""
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)}


def first_trained_layer(section: LoraSection, number_of_layers: int) -> int:
    """Return the index of the lowest layer that gets an adapter; the number of layers if none.

    Raises
    ------
    ConfigError
        If ``lora.last_layers`` is more than the model has.
    """
    if section.rank == 0:
        return number_of_layers
    count = section.last_layers or number_of_layers
    if count > number_of_layers:
        raise ConfigError(
            f"lora.last_layers = {count}: the model has {number_of_layers} layers",
            f"set it to at most {number_of_layers}, or leave it out to adapt all",
        )
    return number_of_layers - count


def adapted_layers(
    backbone: PreTrainedModel, architecture: Architecture, section: LoraSection
) -> list[str]:
    """Return the full names of the layers of which something is trained, from the lowest on.

    Raises
    ------
    ConfigError
        If ``lora.last_layers`` is more than the model has.
    """
    stack = backbone.base_model
    within = next((f"{n}." for n, m in backbone.named_modules() if m is stack and n), "")
    layers = architecture.layer_names(stack)
    return [f"{within}{layer}" for layer in layers[first_trained_layer(section, len(layers)) :]]


def target_names(
    backbone: PreTrainedModel, architecture: Architecture, section: LoraSection
) -> list[str]:
    """Return the full names of the linear layers that get an adapter, in order.

    Raises
    ------
    ConfigError
        If a name of ``lora.target_modules`` matches no linear layer of the adapted layers, or
        none of them looks like query or value.
    """
    adapted = tuple(f"{layer}." for layer in adapted_layers(backbone, architecture, section))
    linear = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(adapted)
    ]
    auto = section.target_modules == "auto"
    wanted = architecture.query_value if auto else section.target_modules
    if not wanted:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(
            "lora.target_modules: no linear layer of this model looks like query or value",
            f"choose from {', '.join(known)}" if known else "set lora.rank = 0",
        )
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"lora.target_modules: the model's adapted layers have no linear layer {target!r}",
                f"choose from {', '.join(known)}",
            )
    return [n for n in linear if any(f".{n}".endswith(f".{target}") for target in wanted)]


def add_adapters(
    backbone: PreTrainedModel, architecture: Architecture, section: LoraSection, seed: int
) -> PeftModel:
    """Put float32 adapters into ``backbone``, in place; they change nothing at first.

    B is zero. A is uniform on plus or minus 1 / sqrt(inputs), drawn from ``seed`` alone, so
    that every party starts from the same adapter; some methods make its rows orthogonal. The
    parameters that need a gradient are those of a run's first round.

    Raises
    ------
    ConfigError
        If ``lora.target_modules``, ``lora.last_layers`` or ``lora.rank`` does not fit the model.
    """
    kind = section.kind
    adapted = _wrapped(backbone, architecture, section)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            uniform = RandomStream.seeded(seed, "adapter", name).uniform(parameter.numel())
            values = (2.0 * uniform - 1.0) / sqrt(parameter.shape[1])
            if kind in _ORTHONORMAL:
                rows = orthonormal_rows(values.reshape(parameter.shape))
                values = ORTHONORMAL_SCALE * rows
            _put(parameter, torch.from_numpy(values).reshape(parameter.shape))
            parameter.requires_grad_(kind == "lora")
        elif "lora_B" in name:
            _put(parameter, torch.zeros(parameter.shape))
    if kind == "core":
        add_cores(adapted, seed)
    return adapted


@torch.no_grad()
def _put(parameter: nn.Parameter, values: Tensor) -> None:
    """Put float32 values into a tensor where it is: on the base's device, in the same bits."""
    if parameter.dtype != torch.float32:
        raise RuntimeError("peft made an adapter that is not in float32")
    parameter.copy_(values.float())


def shaped_adapters(
    backbone: PreTrainedModel, architecture: Architecture, section: LoraSection
) -> PeftModel:
    """Put adapters of the right shapes into a model without numbers, as `add_adapters` would."""
    adapted = _wrapped(backbone, architecture, section)
    if section.kind == "core":
        for layer in lora_layers(adapted).values():
            add_core(layer)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            both, only_b = section.kind == "lora", section.kind != "core" and "lora_B" in name
            parameter.requires_grad_(both or only_b)
    return adapted


def _wrapped(
    backbone: PreTrainedModel, architecture: Architecture, section: LoraSection
) -> PeftModel:
    # A head alone needs no peft.
    from peft import LoraConfig, get_peft_model

    names = target_names(backbone, architecture, section)
    _check_rank(backbone, names, section.rank)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]
        target_modules=names,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=isinstance(backbone.get_submodule(names[0]), Conv1D),
        task_type=_kind_of_model(backbone, architecture),
    )
    return get_peft_model(backbone, config)  # type: ignore[return-value]


def _kind_of_model(backbone: PreTrainedModel, architecture: Architecture) -> str:
    """Return what peft calls a model with such a head."""
    if not backbone.get_output_embeddings():
        return "FEATURE_EXTRACTION"
    return "SEQ_2_SEQ_LM" if architecture.prompted else "CAUSAL_LM"


def _check_rank(backbone: PreTrainedModel, names: list[str], rank: int) -> None:
    widths = {n: min(cast(nn.Linear, backbone.get_submodule(n)).weight.shape) for n in names}
    narrowest = min(widths, key=lambda name: widths[name])
    if rank > widths[narrowest]:
        raise ConfigError(
            f"lora.rank = {rank} is more than the width {widths[narrowest]} of {narrowest}: such "
            "an adapter has more values than the layer",
            f"set it to {widths[narrowest]} or less",
        )


def orthonormal_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows (R, N) made orthonormal one after another, by Gram and Schmidt, twice.

    Every operation is rounded as the standard for floating point says, sums exactly: so the same
    rows give the same bits on every processor, and parties need not send each other the result.
    """
    done: list[NDArray[np.float64]] = []
    for row in rows:
        left = row
        for other in (*done, *done):
            left = left - fsum((left * other).tolist()) * other
        done.append(left / sqrt(fsum((left * left).tolist())))
    return np.stack(done)
