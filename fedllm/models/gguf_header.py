"""The head of a GGUF file, walked through once with every count held against the file's size.

The reader behind it believes what counts say, and a count of 2^62 is read to its end. The layout is
that of ggml's `docs/gguf.md`, version 2 and 3, little endian.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS, _MOST_NESTED = 4, 2
# Bytes that an entry of each kind takes at least.
_LEAST_PAIR, _LEAST_TENSOR = 13, 32


def check_header(stream: BinaryIO, size: int) -> None:
    """Walk through metadata and the list of tensors.

    Parameters
    ----------
    stream : BinaryIO
        At the file's begin.
    size : int
        Of the file, in bytes.

    Raises
    ------
    ValueError
        If something in it is no GGUF, or reaches beyond the end.
    """
    walk = _Walk(stream, size)
    if walk.take(4) != _MAGIC:
        raise ValueError("it does not begin as a GGUF file")
    if (version := walk.number("<I")) not in _VERSIONS:
        raise ValueError(f"it is of version {version}")
    tensors, pairs = walk.count(_LEAST_TENSOR), walk.count(_LEAST_PAIR)
    for _ in range(pairs):
        walk.string()
        walk.value(walk.number("<I"))
    for _ in range(tensors):
        walk.string()
        dimensions = walk.number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        walk.skip(8 * dimensions + 4)
        if walk.number("<Q") > size:
            raise ValueError("a tensor lies beyond its end")


class _Walk:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def take(self, count: int) -> bytes:
        self._pass(count)
        return self._stream.read(count)

    def skip(self, count: int) -> None:
        self._pass(count)
        self._stream.seek(count, 1)

    def _pass(self, count: int) -> None:
        if count > self._left:
            raise ValueError("it ends within its head")
        self._left -= count

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def count(self, least: int) -> int:
        found = self.number("<Q")
        if found > self._left // least:
            raise ValueError(f"it says that {found} things follow, for which it is too short")
        return found

    def string(self) -> None:
        self.skip(self.number("<Q"))

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in _SIZES:
            self.skip(_SIZES[kind])
        elif kind == _STRING:
            self.string()
        elif kind == _ARRAY and depth < _MOST_NESTED:
            inner = self.number("<I")
            length = self.count(_SIZES.get(inner, 8))
            if inner in _SIZES:
                self.skip(length * _SIZES[inner])
                return
            for _ in range(length):
                self.value(inner, depth + 1)
        else:
            raise ValueError(f"it holds a value of an unknown kind ({kind})")
