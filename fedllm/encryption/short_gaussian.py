"""Discrete Gaussian secrets and errors of lattice masks, by a table of 128-bit thresholds."""

from __future__ import annotations

from bisect import bisect_right
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.lattice import DEVIATION
from fedllm.randomness import RandomStream

_PRECISION_BITS = 128
# Whatever lies further out has less probability than one step of the table.
LARGEST = 14 * DEVIATION


def short_gaussian(random: RandomStream, count: int) -> NDArray[np.int64]:
    """Draw integers x with probability proportional to ``exp(-x**2 / (2 DEVIATION**2))``.

    Within ``2**-119`` of that in statistical distance, each. The time hardly depends on the
    values drawn, and no promise is made that it does not.

    Parameters
    ----------
    random : RandomStream
        ``RandomStream.secure()`` outside tests.
    count : int
        How many.

    Returns
    -------
    int64 (count,)
        From ``-LARGEST`` to ``LARGEST``.
    """
    table, upper = _thresholds()
    draw = random.uint64(count)
    place = np.searchsorted(upper, draw, side="right")
    # Where the first 64 bits are those of a threshold, the next 64 decide.
    for undecided in np.flatnonzero((place > 0) & (upper[place - 1] == draw)):
        whole = (int(draw[undecided]) << 64) | int(random.uint64(1)[0])
        place[undecided] = bisect_right(table, whole)
    return place.astype(np.int64) - LARGEST


@lru_cache(maxsize=1)
def _thresholds() -> tuple[tuple[int, ...], NDArray[np.uint64]]:
    """Return ``2**128`` times the distribution function, cut to integers, and its upper halves.

    The last threshold, the whole, is left out: no draw reaches it.
    """
    with localcontext() as context:
        context.prec = 80
        width = Decimal(2 * DEVIATION**2)
        weights = [(-Decimal(x * x) / width).exp() for x in range(-LARGEST, LARGEST + 1)]
        total, below = sum(weights), Decimal(0)
        table = []
        for weight in weights[:-1]:
            below += weight
            table.append(int(below / total * (1 << _PRECISION_BITS)))
    return tuple(table), np.array([entry >> 64 for entry in table], dtype=np.uint64)
