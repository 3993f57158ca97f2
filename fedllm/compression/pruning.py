"""Set the weights to zero that matter least, and keep them there.

By size (Han et al. 2015), or by size times what goes into them (Wanda: Sun et al. 2024), each
output's weights compared with each other; half of all, or two of each four neighbours, for which
some processors have instructions (Mishra et al. 2021). Zeros save nothing by themselves: a packed
folder is smaller by them, and no processor here is faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fedllm.compression.linears import Linear, rows_by_output
from fedllm.errors import ConfigError

Pattern = Literal["share", "2:4"]
_OF_FOUR = 4
_KEPT_OF_FOUR = 2


def keep_largest(scores: Tensor, share: float) -> Tensor:
    """Return which of each row's scores stay (R, C), bool, where ``share`` of them goes.

    Parameters
    ----------
    scores : Tensor
        (R, C), not negative.
    share : float
        From 0 to below 1; of a row of C the floor of ``share * C`` goes.
    """
    going = int(share * scores.shape[1])
    kept = torch.ones_like(scores, dtype=torch.bool)
    if going:
        kept.scatter_(1, scores.topk(going, dim=1, largest=False).indices, False)
    return kept


def keep_two_of_four(scores: Tensor) -> Tensor:
    """Return which of each row's scores stay (R, C), bool: the larger two of each four.

    Raises
    ------
    ConfigError
        If rows cannot be cut into fours.
    """
    rows, columns = scores.shape
    if columns % _OF_FOUR:
        raise ConfigError(
            f"a layer has {columns} inputs, which are no fours", "give --share instead"
        )
    fours = scores.reshape(rows, -1, _OF_FOUR)
    kept = torch.zeros_like(fours, dtype=torch.bool)
    kept.scatter_(2, fours.topk(_KEPT_OF_FOUR, dim=2).indices, True)
    return kept.reshape(rows, columns)


@torch.no_grad()
def prune(
    layers: Mapping[str, Linear],
    pattern: Pattern,
    share: float = 0.5,
    norms: Mapping[str, Tensor] | None = None,
) -> None:
    """Set weights of linear layers to zero, in place.

    Parameters
    ----------
    layers : mapping
        Of `linears`.
    pattern : {"share", "2:4"}
        A share of each output's weights, or two of each four.
    norms : mapping, optional
        Of `input_norms`: how large what goes into each layer is. Weights alone decide without.

    Raises
    ------
    ConfigError
        If ``share`` is not from 0 to below 1, or a layer does not fit the pattern; nothing is
        changed then.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"a share of {share:g} cannot go", "give one from 0 to below 1")
    kept = {}
    for name, layer in layers.items():
        weights = rows_by_output(layer).float().abs()
        scores = weights if norms is None else weights * norms[name]
        kept[name] = keep_two_of_four(scores) if pattern == "2:4" else keep_largest(scores, share)
    for name, layer in layers.items():
        rows_by_output(layer).mul_(kept[name])


def zeros(layers: Mapping[str, Linear]) -> float:
    """Return the share of layers' weights that are zero."""
    total = sum(layer.weight.numel() for layer in layers.values())
    return sum(int((layer.weight == 0).sum()) for layer in layers.values()) / total


@contextmanager
def zeros_kept(layers: Mapping[str, Linear], optimizer: Optimizer) -> Iterator[None]:
    """Let an optimiser train pruned layers without giving a zero back its weight.

    Momentum and weight decay move what has no gradient, too; so zeros are put back after each step.
    """
    weights: list[Tensor] = [layer.weight for layer in layers.values()]
    gone: list[Tensor] = [weight == 0 for weight in weights]

    @torch.no_grad()
    def put_back(*_: object) -> None:
        for weight, where in zip(weights, gone, strict=True):
            weight.masked_fill_(where, 0)

    handle = optimizer.register_step_post_hook(put_back)
    try:
        yield
    finally:
        handle.remove()
