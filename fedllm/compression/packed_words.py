"""A packed folder's tokenizer: its files hold words, which zlib makes a third as large."""

from __future__ import annotations

import zlib
from pathlib import Path

from fedllm.compression.packed_file import damaged
from fedllm.files import write_bytes

ENDING = ".zlib"
# By their names, since a card and what says of the folder what it is are read where they lie.
_NAMES = frozenset(
    {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"}
)
# What such a file can have at the most: a few bytes can stand for very many.
_MOST_BYTES = 1 << 28


def has_words(path: Path) -> bool:
    """Tell whether a file is one that becomes smaller in a packed folder."""
    return path.name in _NAMES


def is_short(path: Path) -> bool:
    """Tell whether a file of a packed folder is one that became smaller."""
    return path.name.endswith(ENDING) and path.name.removesuffix(ENDING) in _NAMES


def write_short(path: Path, folder: Path) -> None:
    """Write a file's bytes into another folder, made smaller."""
    write_bytes(folder / (path.name + ENDING), zlib.compress(path.read_bytes(), 9))


def write_long(path: Path, folder: Path) -> None:
    """Write into another folder what `write_short` made smaller.

    Raises
    ------
    CheckpointError
        If the file is damaged, or stands for more than 256 MiB.
    """
    reading = zlib.decompressobj()
    try:
        content = reading.decompress(path.read_bytes(), _MOST_BYTES)
    except zlib.error as error:
        raise damaged(path, str(error)) from None
    if not reading.eof or reading.unused_data:
        raise damaged(path, "it is not one whole file of at most 256 MiB")
    write_bytes(folder / path.name.removesuffix(ENDING), content)
