"""A matrix's weights as one of sixteen values a row: Lloyd's method on one line (Lloyd 1982).

Each row is first divided by its root mean square, so that one list of values fits all rows. Zero is
one of the values and is kept for weights that are exactly zero: what was pruned stays pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedllm.compression.coding import BITS, Codes

# Zero is code 0; the others are values.
VALUES = 2**BITS - 1
_ITERATIONS = 30
_SAMPLE = 2**20


@dataclass(frozen=True, eq=False)
class Clustered:
    """A matrix whose weights have few values.

    Attributes
    ----------
    codes : uint8 array (R, C)
        0 for zero, else one more than the place in ``values``.
    values : float32 array (15,)
        From the lowest to the highest.
    scales : float16 array (R,)
        What a row's values are multiplied by.
    """

    codes: Codes
    values: NDArray[np.float32]
    scales: NDArray[np.float16]

    def matrix(self) -> NDArray[np.float32]:
        """Return the weights (R, C)."""
        table = np.concatenate([np.zeros(1, np.float32), self.values])
        return table[self.codes] * self.scales.astype(np.float32)[:, None]


def cluster(matrix: NDArray[np.float32]) -> Clustered:
    """Return a matrix (R, C) with few values, near to the one given."""
    kept = matrix != 0
    squares = np.square(matrix, dtype=np.float64).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    # A row of zeros, or one that float16 cannot scale, has nothing to lose.
    scales = np.sqrt(squares).astype(np.float16)
    scales[scales == 0] = 1
    normal = matrix / scales.astype(np.float32)[:, None]
    values = _values(normal[kept])
    codes = np.searchsorted((values[1:] + values[:-1]) / 2, normal).astype(np.uint8) + np.uint8(1)
    codes[~kept] = 0
    return Clustered(codes, values, scales)


def _values(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values that are nearest to weights in the mean square."""
    if not len(weights):
        return np.zeros(VALUES, dtype=np.float32)
    # Evenly over the matrix, in which no place is special.
    line = np.sort(weights[:: max(1, len(weights) // _SAMPLE)].astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(line)])
    values = np.quantile(line, (np.arange(VALUES) + 0.5) / VALUES)
    for _ in range(_ITERATIONS):
        ends = np.searchsorted(line, (values[1:] + values[:-1]) / 2)
        edges = np.concatenate([[0], ends, [len(line)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, values)
        if np.array_equal(moved, values):
            break
        values = moved
    return np.sort(values).astype(np.float32)
