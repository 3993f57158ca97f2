"""States of a data set's records, kept in memory and, where that is full, on disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedllm.errors import STOPPING
from fedllm.models.on_disk import TensorFile, scratch_folder


@dataclass(frozen=True)
class _OnDisk:
    """Where in a file one record's states lie."""

    file: TensorFile
    place: int
    rows: int
    width: int
    dtype: torch.dtype

    def read(self) -> Tensor:
        return self.file.read(self.place, self.rows, self.width, self.dtype)


@dataclass
class Room:
    """Memory that the kept states of several data sets share.

    Attributes
    ----------
    budget_bytes, used_bytes : int
    """

    budget_bytes: int
    used_bytes: int = 0


class KeptStates:
    """What has been computed of a data set's records so far, by record.

    Parameters
    ----------
    room : Room
        Its memory is taken from it, and given back when this is forgotten.

    Attributes
    ----------
    used_disk_bytes : int
        Disk held now.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._used_bytes = 0
        self._states: dict[int, Tensor | _OnDisk] = {}
        self._file: TensorFile | None = None
        self._disk_failed = False
        self.used_disk_bytes = 0

    def __del__(self) -> None:
        self._room.used_bytes -= self._used_bytes

    def of(self, index: int) -> Tensor | None:
        """Return one record's states (T or 1, H), if they are kept and can be read."""
        found = self._states.get(index)
        if not isinstance(found, _OnDisk):
            return found
        try:
            return found.read()
        except STOPPING:
            raise
        except BaseException:
            # It can be computed afresh: no record is the worse for being kept.
            return None

    def add(self, index: int, states: Tensor) -> None:
        """Keep one record's states (T or 1, H), if memory or disk has room and nothing fails."""
        if index in self._states:
            return
        try:
            self._keep(index, states)
        except STOPPING:
            raise
        except BaseException:
            # Keeping saves time alone. Were it to fail a record, what others keep would decide.
            return

    def drop(self) -> None:
        """Give back the memory; what lies on disk takes none, and stays."""
        self._states = {
            index: own for index, own in self._states.items() if isinstance(own, _OnDisk)
        }
        self._room.used_bytes -= self._used_bytes
        self._used_bytes = 0

    def _keep(self, index: int, states: Tensor) -> None:
        if states.nbytes <= self._room.budget_bytes - self._room.used_bytes:
            # A copy: what is given may be a part of something larger.
            self._states[index] = states.clone()
            self._used_bytes += states.nbytes
            self._room.used_bytes += states.nbytes
            return
        if self._disk_failed:
            return
        try:
            self._file = self._file or TensorFile(scratch_folder())
            place = self._file.add(states)
        except OSError:
            self._disk_failed = True
            return
        self.used_disk_bytes = self._file.used_bytes
        rows, width = states.shape
        self._states[index] = _OnDisk(self._file, place, rows, width, states.dtype)
