"""The frozen lower part of the model, computed once for each record and kept.

While only the last layers are trained, what enters them never changes. Keeping it leaves
each training step the cost of those layers alone; losses and gradients stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedllm.errors import STOPPING
from fedllm.models.pieces import by_width
from fedllm.models.transformer import Batch

DEFAULT_BUDGET_BYTES = 2 << 30
_CHUNK = 1024


class Dataset(Protocol):
    """Encoded records, as `fedllm.data.encode` makes them."""

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return the records at ``indices`` as padded tensors."""
        ...


@dataclass(frozen=True, slots=True)
class _Kept:
    states: Tensor
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def rows(self, indices: NDArray[np.int64], length: int) -> Tensor:
        if length == 1 and len(self.states) == len(self.lengths):
            return self.states[torch.from_numpy(indices)].unsqueeze(1)
        result = self.states.new_zeros(len(indices), length, self.states.shape[1])
        for row, index in enumerate(indices):
            start, size = self.starts[index], self.lengths[index]
            result[row, :size] = self.states[start : start + size]
        return result


class PrefixCache:
    """Outputs of a network's frozen part, by data set; forgotten with the data set.

    They may be fewer than a record's tokens, and are filled up with zeros.

    Parameters
    ----------
    network : nn.Module
        Has ``prefix(batch)``.
    worthwhile : bool
        Whether anything below the trained part is frozen at all.
    pooled : bool
        Whether the frozen part ends in one vector a record instead of one a token.
    budget_bytes : int
        Memory for all data sets together; one that no longer fits is computed afresh
        each time, with the same result bit for bit.
    """

    def __init__(
        self,
        network: nn.Module,
        worthwhile: bool,
        pooled: bool,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
    ) -> None:
        self._network = network
        self._worthwhile = worthwhile
        self._pooled = pooled
        self._budget_bytes = budget_bytes
        self._kept: WeakKeyDictionary[Dataset, _Kept | None] = WeakKeyDictionary()

    @property
    def used_bytes(self) -> int:
        """Memory held now."""
        return sum(k.states.nbytes for k in self._kept.values() if k is not None)

    def attach(self, dataset: Dataset, indices: NDArray[np.int64], batch: Batch) -> Batch:
        """Return ``batch`` (the records at ``indices``) with ``"states"``, kept or computed."""
        if not self._worthwhile:
            return batch
        if dataset not in self._kept:
            self._kept[dataset] = self._compute(dataset)
        kept = self._kept[dataset]
        if kept is None:
            return {**batch, "states": self._afresh(batch)}
        length = 1 if self._pooled else batch["input_ids"].shape[1]
        return {**batch, "states": kept.rows(indices, length)}

    def share(self, whole: Dataset, part: Dataset, rows: NDArray[np.int64]) -> None:
        """Keep for ``part`` what is kept of ``whole``, whose records ``rows`` it holds.

        For one process that plays many sites with records of one file.
        """
        kept = self._kept.get(whole)
        if kept is None or not self._pooled:
            return
        count = len(rows)
        self._kept[part] = _Kept(
            kept.states[torch.from_numpy(rows)],
            np.arange(count, dtype=np.int64),
            np.ones(count, dtype=np.int64),
        )

    def _afresh(self, batch: Batch) -> Tensor:
        """Compute what `_Kept.rows` would give of these records, (B, T or 1, H)."""
        count, width = batch["input_ids"].shape
        found: dict[int, Tensor] = {}
        for places, piece in by_width(batch, 1):
            states = self._state(piece)
            if states is not None:
                found[int(places)] = states
        if not found:
            raise RuntimeError("the frozen part breaks off at every record")
        pattern = next(iter(found.values()))
        length = 1 if self._pooled else width
        rows = pattern.new_zeros(count, length, pattern.shape[1])
        for place in range(count):
            size = 1 if self._pooled else int(batch["attention_mask"][place].sum())
            own = found.get(place)
            kept = rows.new_full((size, rows.shape[2]), torch.nan) if own is None else own[:size]
            rows[place, : len(kept)] = kept
        return rows

    def _compute(self, dataset: Dataset) -> _Kept | None:
        # Each record by itself, as afresh: whether there is room for all must change nothing.
        parts: dict[int, Tensor] = {}
        broken: dict[int, int] = {}
        room = self._budget_bytes - self.used_bytes
        for start in range(0, len(dataset), _CHUNK):
            indices = np.arange(start, min(start + _CHUNK, len(dataset)))
            for places, piece in by_width(dataset.batch(indices), 1):
                own, place = self._state(piece), start + int(places)
                size = 1 if self._pooled else int(piece["attention_mask"].sum())
                if own is None:
                    broken[place] = size
                    continue
                parts[place] = own[:size].clone()
                room -= parts[place].nbytes
            if room < 0:
                return None
        if not parts:
            return None
        pattern = next(iter(parts.values()))
        for place, size in broken.items():
            parts[place] = pattern.new_full((size, pattern.shape[1]), torch.nan)
        lengths = np.array([len(parts[i]) for i in range(len(dataset))], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        return _Kept(torch.cat([parts[i] for i in range(len(dataset))]), starts, lengths)

    def _state(self, piece: Batch) -> Tensor | None:
        """Run the frozen part on one record by itself, (T or 1, H); None where it breaks off."""
        try:
            (states,) = self._network.prefix(piece)  # type: ignore[operator]
            return states
        except STOPPING:
            raise
        except BaseException:
            return None
