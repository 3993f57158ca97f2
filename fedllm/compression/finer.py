"""How many bits each matrix of a packed folder gets: more where they win most, within a bound."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedllm.compression.clustering import cluster
from fedllm.compression.coding import encode, entropy_bits
from fedllm.compression.packed_file import BITS


@dataclass(frozen=True, eq=False)
class Way:
    """A matrix with codes of so many bits.

    Attributes
    ----------
    bits : int
        Of a code, before Huffman's.
    codes : uint8 array
        As they are written.
    values : float32 array
        What codes stand for, beside zero.
    scales : float16 array
        Of the rows.
    lost : float
        Sum of squares by which the matrix is another.
    entropy_bits : float
        The fewest that its codes could take.
    """

    bits: int
    codes: NDArray[np.uint8]
    values: NDArray[np.float32]
    scales: NDArray[np.float16]
    lost: float
    entropy_bits: float

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return self.codes.nbytes + self.values.nbytes + self.scales.nbytes


def ways_of(matrix: NDArray[np.float32]) -> Iterator[Way]:
    """Yield a matrix (M, N) with ever more bits."""
    for bits in BITS:
        found = cluster(matrix, bits)
        codes = np.frombuffer(encode(found.codes.reshape(-1), bits), dtype=np.uint8)
        yield Way(
            bits, codes, found.values, found.scales, found.lost(matrix), entropy_bits(found.codes)
        )


def chosen_within(matrices: Sequence[Sequence[Way]], most_bytes: float) -> list[Way]:
    """Return one way for each matrix, so that all take no more than a number of bytes.

    More bits go first where a byte of them takes the most of what is lost; the fewest stay where
    they are too much already.
    """
    room = most_bytes - sum(ways[0].nbytes for ways in matrices)
    places = [0] * len(matrices)
    waiting = [(-_won(ways, 1), place) for place, ways in enumerate(matrices)]
    heapq.heapify(waiting)
    while waiting:
        _, place = heapq.heappop(waiting)
        ways, now = matrices[place], places[place]
        cost = ways[now + 1].nbytes - ways[now].nbytes
        if cost > room:
            continue
        room -= cost
        places[place] = now + 1
        if now + 2 < len(ways):
            heapq.heappush(waiting, (-_won(ways, now + 2), place))
    return [ways[now] for ways, now in zip(matrices, places, strict=True)]


def _won(ways: Sequence[Way], place: int) -> float:
    """Return how much less is lost, for each byte more, than with the bits before."""
    before, after = ways[place - 1], ways[place]
    return (before.lost - after.lost) / max(1, after.nbytes - before.nbytes)
