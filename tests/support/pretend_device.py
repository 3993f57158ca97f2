"""A GPU that is not there: tensors that seem to lie on another device, and have their numbers.

They are computed on the processor. As on a GPU, numpy cannot read them, and an operation that is
given tensors of both kinds fails. PyTorch is told that they are on its device "meta", the only one
beside the processor that a PyTorch without GPUs can differentiate on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fedllm.models import device, shared

PRETENDED = torch.device("meta")
_aten = torch.ops.aten
# A GPU, too, may be given these with an operand in the processor's memory.
_MAY_MIX = (_aten.copy_.default, _aten.index.Tensor, _aten.index_put_.default)


class OnDevice(Tensor):
    """A tensor that seems to be on the device, around the one that has its numbers."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=PRETENDED,
        )
        made.inside = inside
        return made

    def tolist(self) -> Any:
        """As of any tensor; PyTorch refuses it to classes like this."""
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors on the device that are asked for there, and takes over those sent there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Makes tensors of lists there, which no operation tells of."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and given.get("device") == PRETENDED:
            return OnDevice(torch.tensor(*args, **given | {"device": "cpu"}))
        return func(*args, **given)


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    given = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    mine = {id(v.inside): v for v in given if isinstance(v, OnDevice)}
    others = [v for v in given if not isinstance(v, OnDevice) and v.dim()]
    if mine and others and func not in _MAY_MIX:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two: {func}")
    asked = kwargs.get("device")
    there = bool(mine) if asked is None else torch.device(asked) == PRETENDED
    if func is _aten.copy_.default:
        there = isinstance(args[0], OnDevice)
    inner = pytree.tree_map_only(OnDevice, lambda v: v.inside, (args, dict(kwargs)))
    if there and asked is not None:
        inner[1]["device"] = torch.device("cpu")
    found = func(*inner[0], **inner[1])
    if not there:
        return found

    def outward(value: Tensor) -> Tensor:
        return mine[id(value)] if id(value) in mine else OnDevice(value)

    return pytree.tree_map_only(Tensor, outward, found)


@contextmanager
def pretended() -> Iterator[None]:
    """Let every model that is loaded inside lie on the device that is not there."""
    with ExitStack() as active, pytest.MonkeyPatch.context() as patch:

        def chosen(name: str | None, key: str = "") -> torch.device:
            # A model is read as always: how transformers uses "meta" is no concern of this.
            active.close()
            return torch.device("cpu") if name in (None, "cpu") else PRETENDED

        def put_on(model: Any, where: torch.device) -> Any:
            if where == PRETENDED:
                active.enter_context(_Factories())
                active.enter_context(_Literals())
            return device.put_on(model, where)

        patch.setattr(shared, "chosen_device", chosen)
        patch.setattr(shared, "put_on", put_on)
        yield
