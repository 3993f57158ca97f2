"""How much memory tensors take at once, counted from the operations that are run.

With tensors that have shapes and no numbers (PyTorch's fake tensors), a model of any size is
counted on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active, until they go.

    What a fake tensor cannot answer, it answers as for texts without padding in which every token
    counts: yes, and all places.

    Attributes
    ----------
    live_bytes, peak_bytes : int
        Now, and at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        fake = bool(args) and isinstance(args[0], FakeTensor)
        answer = _ANSWERS.get(func) if fake else None
        result = (answer or func)(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor):
                self.count(value)
        return result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor that is there already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live_bytes -= size


def _all_places(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.numel(), tensor.dim(), dtype=torch.int64, device=tensor.device)


def _counts(tensor: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return torch.empty(max(minlength, 1), dtype=torch.int64, device=tensor.device)


_aten = torch.ops.aten
_ANSWERS: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: lambda _: True,
    _aten.is_nonzero.default: lambda _: True,
    _aten.nonzero.default: _all_places,
    _aten.bincount.default: _counts,
}
