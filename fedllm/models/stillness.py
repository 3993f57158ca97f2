"""Whether a model keeps anything from one text to the next, and how it is made to forget.

A model that writes on itself while it runs could make what is computed of a record depend on the
records before it. Numbers need not show that on the texts that it was tried on, so it is looked at
what is written, whatever the numbers say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# What every module has; of these, hooks come and go.
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


class Belongings:
    """All that a model's modules hold: tensors as they were written last, other values by identity.

    Keeps what it saw alive, so that nothing new can stand in its place and be taken for it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = dict(_held(model))

    def changed(self, model: nn.Module) -> str | None:
        """Return the name of the first thing that was written, exchanged, added or removed."""
        now = dict(_held(model))
        for name in (*self._seen, *now):
            if name not in self._seen or name not in now or not _same(self._seen[name], now[name]):
                return name
        return None


def _held(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for place, module in model.named_modules():
        for kind in (module._buffers, module._parameters):
            for name, tensor in kind.items():
                yield f"{place}.{name}".strip("."), _noted(tensor)
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE:
                yield f"{place}.{name}".strip("."), _noted(value)


def _noted(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value, value._version
    if isinstance(value, dict):
        return dict, tuple((key, _noted(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_noted, value))
    return value, None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(map(_same, one, other))
    plain = isinstance(one, bool | int | float | str | type(None))
    return one is other or (plain and type(one) is type(other) and one == other)


def forgets(model: nn.Module) -> None:
    """Let a frozen model begin each run with the buffers that it has now.

    A second wall: a model that was seen to write on itself is refused.
    """
    kept = [
        (module, name, tensor, tensor._version, tensor.clone())
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]

    @torch.no_grad()
    def put_back(*_: object) -> None:
        for place, (module, name, tensor, version, value) in enumerate(kept):
            if module._buffers.get(name) is tensor and tensor._version == version:
                continue
            whole = value.clone()
            module._buffers[name] = whole
            kept[place] = (module, name, whole, whole._version, value)

    model.register_forward_pre_hook(put_back)
