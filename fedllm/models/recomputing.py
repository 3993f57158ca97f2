"""Activation checkpointing: layers that keep what enters them, and run again for their gradient.

Chen et al. 2016, "Training deep nets with sublinear memory cost". A layer's first run keeps nothing
and so fires no hook that collects gradients of single records; the second one, in the backward
pass, runs and is gone through as a whole, so that each hook sees its layer once, forwards and
backwards, as without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache


@contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let layers keep nothing but their input inside the block.

    Parameters
    ----------
    layers : iterable of nn.Module
        Each takes and gives states, alone or first in a tuple, and nothing that is random.
    """
    with ExitStack() as after:
        for layer in layers:
            own = layer.__dict__.get("forward")
            after.callback(_put_back, layer, own)
            layer.forward = partial(_run, layer, layer.forward)  # type: ignore[method-assign]
        yield


def _put_back(layer: nn.Module, own: Callable[..., Any] | None) -> None:
    layer.__dict__.pop("forward", None)
    if own is not None:
        layer.forward = own  # type: ignore[method-assign]


def _run(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    values, form = pytree.tree_flatten((args, kwargs))
    if any(isinstance(value, Cache) for value in values):
        raise RuntimeError("a layer adds to a cache, and would do so twice")
    places = [i for i, value in enumerate(values) if _differentiable(value)]

    def again(tensors: Iterable[Tensor]) -> Any:
        given = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        own_args, own_kwargs = pytree.tree_unflatten(given, form)
        return forward(*own_args, **own_kwargs)

    trained = [p for p in layer.parameters() if p.requires_grad]
    rest: list[Any] = []
    states = _Recomputed.apply(again, rest, len(places), *[values[i] for i in places], *trained)
    return (states, *rest) if rest else states


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Recomputed(torch.autograd.Function):
    """Takes what enters a layer and what is trained of it; gives the layer's states.

    Whatever else the layer returns, such as T5's relative positions, has no gradient here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        again: Callable[[Iterable[Tensor]], Any],
        rest: list[Any],
        entering: int,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.again, ctx.entering = again, entering
        ctx.save_for_backward(*tensors)
        output = again(tensors[:entering])
        states, *others = output if isinstance(output, tuple) else (output,)
        rest.extend(others)
        return states  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[3:]
        with torch.enable_grad():
            entering = [
                tensor.detach().requires_grad_(wants)
                for tensor, wants in zip(tensors[: ctx.entering], wanted, strict=False)
            ]
            output = ctx.again(entering)
            states, *others = output if isinstance(output, tuple) else (output,)
        if any(isinstance(other, Tensor) and other.requires_grad for other in others):
            raise RuntimeError("a layer hands on more than its states to be trained through")
        sources = [*entering, *tensors[ctx.entering :]]
        asked = [source for source, wants in zip(sources, wanted, strict=True) if wants]
        found = iter(torch.autograd.grad(states, asked, slopes[0], allow_unused=True))
        return None, None, None, *(next(found) if wants else None for wants in wanted)
