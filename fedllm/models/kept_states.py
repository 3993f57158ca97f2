"""States of a data set's records, kept in memory and, where that is full, on disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedllm.models.on_disk import TensorFile, scratch_folder

# States that are put together before they are written.
_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Block:
    """States of some records in a row, in memory or in a file."""

    states: Tensor | None
    file: TensorFile | None
    place: int
    width: int
    dtype: torch.dtype

    def rows(self, start: int, count: int) -> Tensor:
        """Return some rows (count, H); raises OSError if the disk fails."""
        if self.states is not None:
            return self.states[start : start + count]
        if self.file is None:
            raise OSError("nothing is kept here")
        place = self.place + start * self.width * self.dtype.itemsize
        return self.file.read(place, count, self.width, self.dtype)


@dataclass(frozen=True)
class Kept:
    """What is kept of a data set's records, each of which lies in one block.

    Attributes
    ----------
    blocks : tuple of Block
    block_of, starts, lengths : int64 array (N,)
        Of each record: its block, -1 where nothing is kept; its first row there; its rows.
    """

    blocks: tuple[Block, ...]
    block_of: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def of(self, index: int) -> Tensor | None:
        """Return one record's states (T or 1, H), if they are kept and can be read."""
        block = int(self.block_of[index])
        if block < 0:
            return None
        try:
            return self.blocks[block].rows(int(self.starts[index]), int(self.lengths[index]))
        except OSError:
            return None

    def some(self, rows: NDArray[np.int64]) -> Kept:
        """Return what is kept of some of the records, without a copy of the states."""
        return Kept(self.blocks, self.block_of[rows], self.starts[rows], self.lengths[rows])


class Keeping:
    """Puts records' states into blocks, in memory while there is room and then on disk."""

    def __init__(self, records: int, room: int) -> None:
        self._room = room
        self._file: TensorFile | None = None
        self._blocks: list[Block] = []
        self._block_of = np.full(records, -1, dtype=np.int64)
        self._starts, self._lengths = np.zeros((2, records), dtype=np.int64)
        self._open: dict[int, tuple[int, Tensor | None]] = {}
        self._open_bytes = 0

    def add(self, index: int, size: int, states: Tensor | None) -> bool:
        """Keep one record's states (``size``, H), or that there are none; False: no more room."""
        self._open[index] = size, states
        self._open_bytes += 0 if states is None else states.nbytes
        return self._open_bytes < _BLOCK_BYTES or self.close_block()

    def close_block(self) -> bool:
        """Keep what was added since the last block; False if there is no room for it."""
        pattern = next((states for _, states in self._open.values() if states is not None), None)
        added, self._open, self._open_bytes = self._open, {}, 0
        if pattern is None:
            return True
        width, dtype = pattern.shape[1], pattern.dtype
        parts = [
            pattern.new_full((size, width), torch.nan) if states is None else states
            for size, states in added.values()
        ]
        together = torch.cat(parts)
        if together.nbytes <= self._room:
            self._room -= together.nbytes
            block = Block(together, None, 0, width, dtype)
        else:
            try:
                self._file = self._file or TensorFile(scratch_folder())
                block = Block(None, self._file, self._file.add(together), width, dtype)
            except OSError:
                return False
        records, sizes = list(added), [len(part) for part in parts]
        self._block_of[records] = len(self._blocks)
        self._starts[records] = np.cumsum([0, *sizes])[:-1]
        self._lengths[records] = sizes
        self._blocks.append(block)
        return True

    def kept(self) -> Kept:
        """Return all that was kept."""
        return Kept(tuple(self._blocks), self._block_of, self._starts, self._lengths)
