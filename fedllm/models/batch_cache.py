"""Keys and values of a batch whose rows come and go: put together, taken apart, taken back.

They lie with padding on the left, so that each row's newest stand at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fedllm.models.prompt_cache import Layers

_NAMES = ("keys", "values")


def filled(rows: Sequence[tuple[int, list[Layers]]], width: int) -> DynamicCache:
    """Return a cache of what is kept of some rows, padded on the left to so many tokens.

    Parameters
    ----------
    rows : sequence of tuple
        Of each row how many tokens are taken, and the blocks that hold them.
    """
    cache = DynamicCache()
    for layer in range(len(rows[0][1][0])):
        pair = [
            torch.stack(
                [
                    wider(torch.cat([b[layer][which] for b in blocks], 1)[:, :taken], width, 1)
                    for taken, blocks in rows
                ]
            )
            for which in (0, 1)
        ]
        cache.update(pair[0], pair[1], layer)
    return cache


def is_table(cache: DynamicCache, width: int) -> bool:
    """Tell whether all layers hold keys and values of each token, and nothing else."""
    layers: Sequence[Any] = cache.layers
    return {type(layer) for layer in layers} == {DynamicLayer} and all(
        layer.is_initialized and layer.keys.shape[2] == layer.values.shape[2] == width
        for layer in layers
    )


def merge(own: DynamicCache, new: DynamicCache, width: int) -> None:
    """Put newly read rows behind those of a cache, all as wide as the widest."""
    for mine, others in zip(own.layers, new.layers, strict=True):
        for name in _NAMES:
            parts = [wider(getattr(layer, name), width, 2) for layer in (mine, others)]
            setattr(mine, name, torch.cat(parts))


def choose(cache: DynamicCache, rows: Tensor, first: int = 0) -> None:
    """Let all other rows leave, and the tokens before the ``first``."""
    for layer in cache.layers:
        for name in _NAMES:
            setattr(layer, name, getattr(layer, name)[rows, :, first:].contiguous())


def one_row(cache: DynamicCache, place: int) -> DynamicCache:
    """Return a cache of one row alone, whose tensors may be written on."""
    found = DynamicCache()
    layers: Sequence[Any] = cache.layers
    for number, layer in enumerate(layers):
        found.update(layer.keys[place : place + 1], layer.values[place : place + 1], number)
    return found


def take_back(cache: DynamicCache, rows: int, width: int, *, at_the_end: bool) -> bool:
    """Take back what a pass that broke off has put into some layers and not into others.

    Parameters
    ----------
    rows, width : int
        How many rows and tokens there were.
    at_the_end : bool
        Whether new tokens stand behind those that were; else padding before them.

    Returns
    -------
    bool
        Whether all layers are as they were; a layer of another kind cannot be told.
    """
    layers: Sequence[Any] = cache.layers
    for layer in layers:
        if type(layer) is not DynamicLayer or not layer.is_initialized:
            return False
        for name in _NAMES:
            held = getattr(layer, name)[:rows]
            start = 0 if at_the_end else held.shape[2] - width
            setattr(layer, name, held[:, :, start : start + width])
    return is_table(cache, width)


def padded(values: Sequence[int], width: int, pad_with: int) -> list[int]:
    """Put as many numbers before others as are missing."""
    return [pad_with] * (width - len(values)) + list(values)


def wider(values: Tensor, width: int, axis: int) -> Tensor:
    """Put zeros before what there is along an axis."""
    missing = width - values.shape[axis]
    return pad(values, (*[0, 0] * (values.dim() - 1 - axis), missing, 0)) if missing else values
