"""Activation checkpointing: layers that keep what enters them, and run again for their gradient.

Chen et al. 2016, "Training deep nets with sublinear memory cost". A layer's first run keeps nothing
and so fires no hook that collects gradients of single records; the second one, in the backward
pass, runs and is gone through as a whole, so that each hook sees its layer once, forwards and
backwards, as without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

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
        Nothing in them is random.
    """
    with ExitStack() as after:
        for layer in layers:
            own = layer.__dict__.get("forward")
            after.callback(_put_back, layer, own)
            layer.forward = partial(_run, layer, layer.forward)  # type: ignore[method-assign]
        yield


def run_again(compute: Callable[[], Tensor], trained: Sequence[Tensor]) -> Tensor:
    """Compute something that keeps nothing, and is computed once more for its gradient.

    Parameters
    ----------
    compute : callable
        Nothing in it is random.
    trained : sequence of Tensor
        What its result hangs on and what has a gradient; all of it.
    """
    if not torch.is_grad_enabled():
        return compute()
    return cast(Tensor, _RunAgain.apply(compute, *trained))


class _RunAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Tensor], *trained: Tensor) -> Tensor:
        ctx.compute = compute
        ctx.save_for_backward(*trained)
        return compute()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        asked = [one for one, wants in zip(ctx.saved_tensors, wanted, strict=True) if wants]
        with torch.enable_grad():
            found = ctx.compute()
            slopes = iter(torch.autograd.grad(found, asked, slope, allow_unused=True))
        return None, *(next(slopes) if wants else None for wants in wanted)


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
    form_of: list[Any] = []
    given = [values[i] for i in places]
    found = _Recomputed.apply(again, form_of, len(places), *given, *trained)
    leaves, form_out = form_of
    for place, tensor in zip(_places(leaves), found, strict=True):
        leaves[place] = tensor
    return pytree.tree_unflatten(leaves, form_out)


def _places(leaves: list[Any]) -> list[int]:
    return [i for i, leaf in enumerate(leaves) if _differentiable(leaf)]


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class _Recomputed(torch.autograd.Function):
    """Takes what enters a layer and what is trained of it; gives all tensors that it returns."""

    @staticmethod
    def forward(
        ctx: Any,
        again: Callable[[Iterable[Tensor]], Any],
        form_of: list[Any],
        entering: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.again, ctx.entering = again, entering
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        leaves, form = pytree.tree_flatten(again(tensors[:entering]))
        form_of.extend((leaves, form))
        return tuple(leaves[place] for place in _places(leaves))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[3:]
        with torch.enable_grad():
            entering = [
                tensor.detach().requires_grad_(wants)
                for tensor, wants in zip(tensors[: ctx.entering], wanted, strict=False)
            ]
            leaves = pytree.tree_leaves(ctx.again(entering))
        # Not all that a layer returns hangs on what is trained, such as T5's relative positions.
        reached = [
            (leaves[place], slope)
            for place, slope in zip(_places(leaves), slopes, strict=True)
            if slope is not None and leaves[place].requires_grad
        ]
        sources = [*entering, *tensors[ctx.entering :]]
        asked = [source for source, wants in zip(sources, wanted, strict=True) if wants]
        outputs, given = zip(*reached, strict=True) if reached else ((), ())
        found = iter(torch.autograd.grad(outputs, asked, given, allow_unused=True))
        return None, None, None, *(next(found) if wants else None for wants in wanted)
