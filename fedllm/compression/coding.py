"""Small whole numbers as few bits: Huffman's code, by the encoder that zlib has for it alone.

Two numbers of four bits stand in each byte that is coded, so that one that is frequent, such as
zero in a pruned matrix, costs half a bit at least and not a whole one (RFC 1951; Huffman 1952).
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from fedllm.errors import CheckpointError

Codes = NDArray[np.uint8]

BITS = 4
_RAW_DEFLATE = -15


def encode(codes: Codes) -> bytes:
    """Write numbers below 16.

    Parameters
    ----------
    codes : uint8 array (N,)
    """
    even = codes if len(codes) % 2 == 0 else np.append(codes, np.uint8(0))
    pairs = (even[0::2] << BITS) | even[1::2]
    coder = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(pairs.tobytes()) + coder.flush()


def decode(content: bytes, count: int) -> Codes:
    """Read ``count`` numbers that `encode` wrote.

    Raises
    ------
    CheckpointError
        If it is damaged, or holds another number of them; no more is read than was asked for.
    """
    wanted = (count + 1) // 2
    reader = zlib.decompressobj(_RAW_DEFLATE)
    try:
        found = reader.decompress(content, wanted + 1)
    except zlib.error as error:
        raise CheckpointError(f"coded weights are damaged: {error}", _REMEDY) from None
    if len(found) != wanted or not reader.eof or reader.unused_data:
        raise CheckpointError(
            f"coded weights are damaged: {2 * wanted} numbers were expected, and others are there",
            _REMEDY,
        )
    pairs = np.frombuffer(found, dtype=np.uint8)
    codes = np.empty(2 * wanted, dtype=np.uint8)
    codes[0::2], codes[1::2] = pairs >> BITS, pairs & (2**BITS - 1)
    return codes[:count]


_REMEDY = "copy the packed folder again, or pack the model once more"


def entropy_bits(codes: Codes) -> float:
    """Return the fewest bits in which a code that knows how frequent each number is writes all.

    Shannon's entropy (1948) of single numbers, times how many there are.
    """
    counts = np.bincount(codes.reshape(-1), minlength=1)
    counts = counts[counts > 0]
    total = int(counts.sum())
    return float(-(counts * np.log2(counts / total)).sum()) if total else 0.0


def bits_a_value(size_bytes: float, count: int) -> float:
    """Return how many bits each of ``count`` values takes."""
    return 8 * size_bytes / count if count else math.nan
