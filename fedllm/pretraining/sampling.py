"""Which pieces of which source make up each step: a function of seed and position alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedllm.errors import CheckpointError
from fedllm.randomness import RandomStream


class Pieces(Protocol):
    """Token sequences cut from the shards of one source."""

    def count(self, epoch: int) -> int:
        """Return how many pieces one pass over the source has."""
        ...

    def piece(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Return the tokens of one of them."""
        ...


class PackedRows:
    """Rows of ``length`` input tokens and one more, cut from a packed stream.

    Each pass begins at another offset, so that documents are not always cut at the same
    places. A row's last token is its last target and the first input of the next row.
    """

    def __init__(self, shards: Sequence[NDArray[Any]], length: int, seed: int) -> None:
        self._shards = [s for s in shards if len(s) > length]
        self._length = length
        self._seed = seed

    def _offset(self, epoch: int, shard: int) -> int:
        spare = len(self._shards[shard]) - 1 - self._length
        bound = min(self._length, spare + 1)
        if epoch == 0 or bound == 1:
            return 0
        return int(RandomStream.seeded(self._seed, "offset", epoch, shard).below(bound, 1)[0])

    def _counts(self, epoch: int) -> list[int]:
        return [
            (len(shard) - 1 - self._offset(epoch, i)) // self._length
            for i, shard in enumerate(self._shards)
        ]

    def count(self, epoch: int) -> int:
        """Return the rows of one pass; fewer than one row a shard is left out."""
        return sum(self._counts(epoch))

    def piece(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Return row ``index`` as int64 of shape (length + 1,)."""
        for shard, count in enumerate(self._counts(epoch)):
            if index < count:
                start = self._offset(epoch, shard) + index * self._length
                row = self._shards[shard][start : start + self._length + 1]
                return row.astype(np.int64)
            index -= count
        raise IndexError(index)


_PADDING = -1
_SHORTEST_PASSAGE = 8


def without_padding(passage: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens of a passage, its padding cut off."""
    return passage[passage != _PADDING]


class Passages:
    """Stretches of one document each, without its boundary, padded to one length.

    Stretches of fewer than eight tokens are left out: too little remains when part of them
    is hidden.
    """

    def __init__(self, shards: Sequence[NDArray[Any]], length: int, boundary: int) -> None:
        self._shards = shards
        self._length = length
        spans = [_passages(shard, length, boundary, i) for i, shard in enumerate(shards)]
        self._spans = np.concatenate([*spans, np.empty((0, 3), np.int64)])

    def count(self, epoch: int) -> int:
        """Return the number of passages, the same in each pass."""
        return len(self._spans)

    def piece(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Return passage ``index`` as int64 of shape (length,)."""
        shard, start, stop = self._spans[index]
        passage = np.full(self._length, _PADDING, dtype=np.int64)
        passage[: stop - start] = self._shards[shard][start:stop]
        return passage


class PassagePairs:
    """Each passage with another one that is chosen at random in each pass."""

    def __init__(self, passages: Passages, seed: int) -> None:
        self._passages = passages
        self._seed = seed

    def count(self, epoch: int) -> int:
        """Return the number of passages; none if there is no other to pair one with."""
        count = self._passages.count(epoch)
        return count if count > 1 else 0

    def piece(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Return passage ``index`` and its partner as int64 of shape (2, length)."""
        count = self.count(epoch)
        stream = RandomStream.seeded(self._seed, "partner", epoch, index)
        partner = (index + 1 + int(stream.below(count - 1, 1)[0])) % count
        return np.stack([self._passages.piece(epoch, index), self._passages.piece(epoch, partner)])


def _passages(shard: NDArray[Any], length: int, boundary: int, number: int) -> NDArray[np.int64]:
    marks = np.flatnonzero(shard == boundary)
    starts, stops = marks[:-1] + 1, marks[1:]
    pieces = -(-(stops - starts) // length)
    first = np.repeat(starts, pieces)
    nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = first + nth * length
    end = np.minimum(begin + length, np.repeat(stops, pieces))
    spans = np.stack([np.full_like(begin, number), begin, end], axis=1)
    return spans[end - begin >= _SHORTEST_PASSAGE].astype(np.int64)


class Sampler:
    """Deals out pieces of several sources in the declared mixture.

    The source that lags most behind its share is next, and each source is passed through
    in a new random order again and again. Its whole state is how many pieces of each
    source were dealt, so that a run resumes exactly, on any number of processes.

    Parameters
    ----------
    sources : sequence of Pieces
        At least one piece each.
    weights : sequence of float, optional
        In proportion to the number of pieces when left out.
    data : str
        Fingerprint of what the sources hold: a state goes with one corpus only.
    """

    def __init__(
        self,
        sources: Sequence[Pieces],
        weights: Sequence[float] | None,
        seed: int,
        data: str = "",
    ) -> None:
        self._sources = sources
        self._seed = seed
        self._data = data
        raw = np.asarray(weights or [s.count(0) for s in sources], dtype=np.float64)
        self._shares = raw / raw.sum()
        self._dealt = np.zeros(len(sources), dtype=np.int64)
        self._epoch = np.zeros(len(sources), dtype=np.int64)
        self._start = np.zeros(len(sources), dtype=np.int64)
        self._order = lru_cache(maxsize=2 * len(sources))(self._shuffled)

    def _shuffled(self, source: int, epoch: int) -> NDArray[np.int64]:
        stream = RandomStream.seeded(self._seed, "order", source, epoch)
        return stream.permutation(self._sources[source].count(epoch))

    def next(self, rows: int) -> list[NDArray[np.int64]]:
        """Return the next ``rows`` pieces."""
        pieces = []
        for _ in range(rows):
            lag = self._shares * (self._dealt.sum() + 1) - self._dealt
            pieces.append(self._deal(int(np.argmax(lag))))
        return pieces

    def _deal(self, source: int) -> NDArray[np.int64]:
        epoch = int(self._epoch[source])
        order = self._order(source, epoch)
        position = int(self._dealt[source] - self._start[source])
        if position == len(order):
            self._epoch[source] += 1
            self._start[source] = self._dealt[source]
            return self._deal(source)
        self._dealt[source] += 1
        return self._sources[source].piece(epoch, int(order[position]))

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on from here, as plain values."""
        return {
            "data": self._data,
            "dealt": self._dealt.tolist(),
            "epoch": self._epoch.tolist(),
            "start": self._start.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken.

        Raises
        ------
        CheckpointError
            If it was taken on another corpus.
        """
        if state.get("data", self._data) != self._data:
            raise CheckpointError(
                "the training text is not what it was when the checkpoint was written",
                "put the files back as they were, or start a new run with another --out",
            )
        self._dealt = np.asarray(state["dealt"], dtype=np.int64)
        self._epoch = np.asarray(state["epoch"], dtype=np.int64)
        self._start = np.asarray(state["start"], dtype=np.int64)
