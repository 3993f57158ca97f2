"""A matrix's weights as one of few values a row: Lloyd's method on one line (Lloyd 1982).

It starts where values would lie if they were many (Panter, Dite 1951): also in the tails, which
from evenly filled places it does not reach. Each row is first divided by its root mean square, so
that one list of values fits all rows. Zero is one of the values and is kept for weights that are
exactly zero: what was pruned stays pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedllm.compression.coding import Codes

_ITERATIONS = 500
# Of a row's root mean square.
_STILL = 1e-5
_SAMPLE = 2**20


@dataclass(frozen=True, eq=False)
class Clustered:
    """A matrix whose weights have few values.

    Attributes
    ----------
    codes : uint8 array (R, C)
        0 for zero, else one more than the place in ``values``.
    values : float32 array (V,)
        From the lowest to the highest; one less than codes of so many bits tell apart.
    scales : float16 array (R,)
        What a row's values are multiplied by.
    """

    codes: Codes
    values: NDArray[np.float32]
    scales: NDArray[np.float16]

    def lost(self, matrix: NDArray[np.float32]) -> float:
        """Return which share of a matrix's squares the difference from it has."""
        squares = float(np.square(matrix, dtype=np.float64).sum())
        return float(np.square(self.matrix() - matrix, dtype=np.float64).sum()) / (squares or 1.0)

    def matrix(self) -> NDArray[np.float32]:
        """Return the weights (R, C)."""
        table = np.concatenate([np.zeros(1, np.float32), self.values])
        return table[self.codes] * self.scales.astype(np.float32)[:, None]


def cluster(matrix: NDArray[np.float32], bits: int) -> Clustered:
    """Return a matrix with few values, near to the one given.

    Parameters
    ----------
    matrix : float32 array (R, C)
    bits : int
        Of a code; from 2 to 8.
    """
    kept = matrix != 0
    squares = np.square(matrix, dtype=np.float64).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    # A row of zeros, or one that float16 cannot scale, has nothing to lose.
    scales = np.sqrt(squares).astype(np.float16)
    scales[scales == 0] = 1
    normal = matrix / scales.astype(np.float32)[:, None]
    values = _values(normal[kept], 2**bits - 1)
    codes = np.searchsorted((values[1:] + values[:-1]) / 2, normal).astype(np.uint8) + np.uint8(1)
    codes[~kept] = 0
    return Clustered(codes, values, scales)


def _values(weights: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the values that are nearest to weights in the mean square."""
    if not len(weights):
        return np.zeros(count, dtype=np.float32)
    # Evenly over the matrix, in which no place is special.
    line = np.sort(weights[:: max(1, len(weights) // _SAMPLE)].astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(line)])
    # The best values lie as dense as the cube root of how dense weights lie; a gap is one by that.
    passed = np.concatenate([[0.0], np.cumsum(np.diff(line) ** (2 / 3))])
    values = np.interp((np.arange(count) + 0.5) / count * passed[-1], passed, line)
    for _ in range(_ITERATIONS):
        ends = np.searchsorted(line, (values[1:] + values[:-1]) / 2)
        edges = np.concatenate([[0], ends, [len(line)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, values)
        still = np.abs(moved - values).max() <= _STILL
        values = moved
        if still:
            break
    return np.sort(values).astype(np.float32)
