"""The linear layers of a Transformer's blocks, and what goes into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.errors import ConfigError

Batch = dict[str, Tensor]
Linear = nn.Linear | Conv1D


def linears(model: PreTrainedModel, lists: Iterable[str]) -> dict[str, Linear]:
    """Return the plain linear layers of a Transformer's blocks by their names in its base.

    Parameters
    ----------
    model : PreTrainedModel
        With a head or without.
    lists : iterable of str
        Dotted names of the lists of blocks in its base (`Architecture.lists`).

    Raises
    ------
    ConfigError
        If there is none.
    """
    stack = model.base_model
    found = {
        f"{inside}.{name}": cast(Linear, part)
        for inside in lists
        for name, part in stack.get_submodule(inside).named_modules()
        # A class of its own may do something else with its weights.
        if type(part) in (nn.Linear, Conv1D)
    }
    if not found:
        raise ConfigError(
            f"the blocks of {model.config.model_type!r} models have no plain linear layers",
            "use fedllm compress distill",
        )
    return found


def rows_by_output(layer: Linear) -> Tensor:
    """Return a view of a layer's weights (outputs, inputs)."""
    weights = layer.weight.data
    return weights.T if isinstance(layer, Conv1D) else weights


@contextmanager
def watched(layers: dict[str, Linear], seen: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand what goes into each layer, (tokens, inputs) float32, to ``seen`` with its name."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(layer: nn.Module, given: tuple[Any, ...]) -> None:
            seen(name, given[0].detach().reshape(-1, given[0].shape[-1]).float())

        return look

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(hook(name))
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def input_norms(
    model: PreTrainedModel, layers: dict[str, Linear], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Return the root of the summed squares of what goes into each layer, (inputs,) float32.

    Parameters
    ----------
    batches : iterable of dict
        ``input_ids`` and ``attention_mask`` of one text each, so that there is no padding.

    Raises
    ------
    ConfigError
        If there is no batch.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, states: Tensor) -> None:
        squares = states.square().sum(dim=0, dtype=torch.float64)
        sums[name] = sums[name] + squares if name in sums else squares

    with watched(layers, add):
        for batch in batches:
            model.base_model(**batch)
    if sums.keys() != layers.keys():
        raise ConfigError(
            "there are no texts to see which weights matter by",
            "give a file of public texts with --texts",
        )
    return {name: total.sqrt().float() for name, total in sums.items()}
