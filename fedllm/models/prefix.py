"""The frozen lower part of the model, computed once for each record that is used, and kept.

While only the last layers are trained, what enters them never changes. Keeping it leaves
each training step the cost of those layers alone; losses and gradients stay the same. A record
that no batch has drawn yet costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedllm.errors import ENDING
from fedllm.models.device import ON_CPU, Place, with_room
from fedllm.models.kept_states import KeptStates, Room
from fedllm.models.pieces import by_width
from fedllm.models.transformer import Batch

DEFAULT_BUDGET_BYTES = 2 << 30

Result = TypeVar("Result")


class Dataset(Protocol):
    """Encoded records, as `fedllm.data.encode` makes them."""

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return the records at ``indices`` as padded tensors."""
        ...


class PrefixCache:
    """Outputs of a network's frozen part, by data set; forgotten with the data set.

    They may be fewer than a record's tokens, and are filled up with zeros. They are kept in the
    numbers in which they were computed: in memory, then on disk (`fedllm.models.on_disk`); what
    neither has room for is computed afresh each time. The result is the same bit for bit, so that
    nothing that leaves a site depends on its memory or disk.

    Parameters
    ----------
    network : nn.Module or FrozenPart
        Has ``prefix(batch)``.
    worthwhile : bool
        Whether anything below the trained part is frozen at all.
    pooled : bool
        Whether the frozen part ends in one vector a record instead of one a token.
    budget_bytes : int
        Memory for all data sets together; the machine's own, also where a GPU computes.
    place : Place
        Where the network computes.
    vectors : callable, optional
        Says of a batch how many vectors each record ends in, (B,); one where left out.
    """

    def __init__(
        self,
        network: Any,
        worthwhile: bool,
        pooled: bool,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        place: Place = ON_CPU,
        vectors: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        self._network = network
        self._vectors = vectors
        self._place = place
        self._worthwhile = worthwhile
        self._pooled = pooled
        self._room = Room(budget_bytes)
        self._kept: WeakKeyDictionary[Dataset, KeptStates] = WeakKeyDictionary()

    @property
    def keeps(self) -> bool:
        """Whether what frozen layers make of a record is computed once, and kept."""
        return self._worthwhile

    @property
    def used_bytes(self) -> int:
        """Memory held now."""
        return self._room.used_bytes

    @property
    def used_disk_bytes(self) -> int:
        """Disk held now."""
        return sum(kept.used_disk_bytes for kept in self._kept.values())

    def with_room(
        self, work: Callable[[], Result], undo: Callable[[], None] = lambda: None
    ) -> Result:
        """Do some work; where memory was too small, once more when nothing is kept in it.

        Parameters
        ----------
        undo : callable
            Undoes what was begun.

        Raises
        ------
        ShortOfMemoryError
            See `fedllm.models.device.with_room`.
        """

        def again() -> None:
            undo()
            self.drop()

        return with_room(self._place.device, work, again)

    def drop(self) -> None:
        """Give back all memory, and hold half as much from now on; the rest goes to disk."""
        if self._room.used_bytes:
            self._room.budget_bytes = self._room.used_bytes // 2
        for kept in list(self._kept.values()):
            kept.drop()

    def attach(self, dataset: Dataset, indices: NDArray[np.int64], batch: Batch) -> Batch:
        """Return ``batch`` (the records at ``indices``) with ``"states"``, kept or computed.

        What is returned lies where the network computes.
        """
        if not self._worthwhile:
            return self._place.moved(batch)
        if dataset not in self._kept:
            self._kept[dataset] = KeptStates(self._room)
        kept = self._kept[dataset]
        found = {}
        for place, index in enumerate(indices):
            own = kept.of(int(index))
            if own is not None:
                found[place] = own
        missing = [place for place in range(len(indices)) if place not in found]
        for place, own in self._afresh(batch, missing):
            found[place] = own
            kept.add(int(indices[place]), own)
        return self._place.moved({**batch, "states": self._filled_up(batch, found)})

    def _afresh(self, batch: Batch, missing: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Compute what is kept of some records of a batch, where it does not break off."""
        if not missing:
            return
        some = {key: value[missing] for key, value in batch.items() if key != "states"}
        # Each record by itself: whether there is room, and when it was first drawn with which
        # others, must change nothing.
        for places, piece in by_width(some, 1):
            states = self._state(piece)
            if states is not None:
                yield missing[int(places)], states[: self._size(piece)]

    def _filled_up(self, batch: Batch, found: dict[int, Tensor]) -> Tensor:
        """Return states (B, T or 1, H), NaN where the frozen part broke off."""
        if not found:
            raise RuntimeError("the frozen part breaks off at every record")
        count, width = batch["input_ids"].shape
        pattern, sizes = next(iter(found.values())), self._sizes(batch)
        most = max(sizes) if self._pooled else width
        rows = pattern.new_zeros(count, most, pattern.shape[1])
        for place, size in enumerate(sizes):
            own = found.get(place)
            if own is None:
                rows[place, :size] = torch.nan
            else:
                rows[place, : len(own)] = own
        return rows

    def _sizes(self, batch: Batch) -> list[int]:
        """Return how many vectors are kept of each record."""
        if not self._pooled:
            return [int(size) for size in batch["attention_mask"].sum(1)]
        if self._vectors is None:
            return [1] * len(batch["input_ids"])
        return [int(size) for size in self._vectors(batch)]

    def _size(self, piece: Batch) -> int:
        (size,) = self._sizes(piece)
        return size

    def _state(self, piece: Batch) -> Tensor | None:
        """Run the frozen part on one record by itself, (T or 1, H); None where it breaks off.

        The states lie in the machine's own memory. A lack of memory is no breaking off.
        """
        try:
            (states,) = self.with_room(lambda: self._computed(piece))
            return states
        except ENDING:
            raise
        except BaseException:
            return None

    def _computed(self, piece: Batch) -> Tensor:
        return cast(Tensor, self._network.prefix(self._place.moved(piece)).cpu())
