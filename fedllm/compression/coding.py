"""Small whole numbers as few bits: Huffman's code, by the encoder that zlib has for it alone.

Of numbers of four bits two stand in each byte that is coded, so that one that is frequent, such as
zero in a pruned matrix, costs half a bit at least and not a whole one (RFC 1951; Huffman 1952).
Larger ones have a byte each.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from fedllm.errors import CheckpointError

Codes = NDArray[np.uint8]

_PAIRED = 4
_RAW_DEFLATE = -15


def encode(codes: Codes, bits: int) -> bytes:
    """Write numbers.

    Parameters
    ----------
    codes : uint8 array (N,)
        Below ``2**bits``.
    bits : int
        From 4 to 8.
    """
    if bits == _PAIRED:
        even = codes if len(codes) % 2 == 0 else np.append(codes, np.uint8(0))
        codes = ((even[0::2] << _PAIRED) | even[1::2]).astype(np.uint8)
    coder = zlib.compressobj(9, zlib.DEFLATED, _RAW_DEFLATE, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(codes.tobytes()) + coder.flush()


def decode(content: bytes, count: int, bits: int) -> Codes:
    """Read ``count`` numbers of so many bits that `encode` wrote.

    Raises
    ------
    CheckpointError
        If it is damaged, or holds another number of them, or larger ones; no more is read than was
        asked for.
    """
    in_a_byte = 2 if bits == _PAIRED else 1
    wanted = -(-count // in_a_byte)
    # Huffman's code has a bit at least for each byte; zlib would read repetitions too, of which few
    # bytes make any number. Compared before memory is taken.
    if wanted > 8 * len(content):
        raise CheckpointError(
            f"coded weights are damaged: {len(content)} bytes cannot hold {count} numbers", _REMEDY
        )
    reader = zlib.decompressobj(_RAW_DEFLATE)
    try:
        found = reader.decompress(content, wanted + 1)
    except zlib.error as error:
        raise CheckpointError(f"coded weights are damaged: {error}", _REMEDY) from None
    if len(found) != wanted or not reader.eof or reader.unused_data:
        raise CheckpointError(
            f"coded weights are damaged: {in_a_byte * wanted} numbers were expected, and others "
            "are there",
            _REMEDY,
        )
    read = np.frombuffer(found, dtype=np.uint8)
    if bits != _PAIRED:
        if count and int(read.max()) >= 2**bits:
            raise CheckpointError(f"coded weights are damaged: one has over {bits} bits", _REMEDY)
        return read
    codes = np.empty(2 * wanted, dtype=np.uint8)
    codes[0::2], codes[1::2] = read >> _PAIRED, read & (2**_PAIRED - 1)
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
