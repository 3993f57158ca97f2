"""A log that grows by sealed lines, each bound to the one before it.

A line of the file is base64 of one sealed text (`fedllm.at_rest.stream`), whose name holds its
number and the SHA-256 of the line before. So no line can be changed, left out of the middle,
repeated or moved; that the newest ones were cut off shows nowhere, as in any log that nobody else
keeps. No number is ever a nonce: a log that was set back gives nobody two texts under one.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedllm.at_rest.stream import About, SealedError, seal_bytes, unseal_bytes
from fedllm.canonical import sha256_hex
from fedllm.files import append_line, atomic_file

_NOTHING = "0" * 64


class SealedLog:
    """Appends to one log; a line that a crash cut off is removed first.

    Parameters
    ----------
    path : Path
        The file, made with the first line.
    key : bytes
        The owner's, 32 bytes.
    about : About
        What it is for, and how it is called.
    """

    def __init__(self, path: Path, key: bytes, about: About) -> None:
        self._path = path
        self._key = key
        self._about = about
        self._number, self._before = 0, _NOTHING
        if path.exists():
            _remove_cut_off_line(path)
            for line in _lines(path):
                self._number, self._before = self._number + 1, sha256_hex(line)

    def append(self, text: str, durable: bool = True) -> None:
        """Add a text; errors as of `fedllm.files.append_line`."""
        line = _sealed_line(text, self._key, self._about, self._number, self._before)
        append_line(self._path, line, durable)
        self._path.chmod(0o600)
        self._number, self._before = self._number + 1, sha256_hex(line)


def read_log(path: Path, keys: Sequence[bytes], about: About) -> Iterator[str]:
    """Yield the texts of a log, in order; a last line that a crash cut off is left out.

    Raises
    ------
    SealedError
        If one does not open; names its number, from 1.
    """
    before = _NOTHING
    for number, line in enumerate(_lines(path)):
        yield _opened_line(line, keys, about, number, before)
        before = sha256_hex(line)


def write_log(path: Path, texts: Iterable[str], key: bytes, about: About) -> None:
    """Write a whole log at once, in place of what was there before."""
    before = _NOTHING
    with atomic_file(path, mode=0o600) as stream:
        for number, text in enumerate(texts):
            line = _sealed_line(text, key, about, number, before)
            stream.write(line.encode() + b"\n")
            before = sha256_hex(line)


def _sealed_line(text: str, key: bytes, about: About, number: int, before: str) -> str:
    sealed = seal_bytes(text.encode(), key, _of_line(about, number, before))
    return base64.b64encode(sealed).decode()


def _opened_line(line: str, keys: Sequence[bytes], about: About, number: int, before: str) -> str:
    try:
        sealed = base64.b64decode(line, validate=True)
        # One spelling alone: the bits that fill up the last letter are nothing that was sealed.
        if base64.b64encode(sealed).decode() != line:
            raise ValueError("another spelling")
        return unseal_bytes(sealed, keys, _of_line(about, number, before)).decode()
    except (SealedError, ValueError):
        raise About(about.purpose, f"line {number + 1} of {about.name}").does_not_open() from None


def _of_line(about: About, number: int, before: str) -> About:
    return About(about.purpose, f"{about.name}\n{number}\n{before}")


def _lines(path: Path) -> Iterator[str]:
    """Yield whole lines, without their ends."""
    with path.open("r", encoding="ascii", errors="replace", newline="\n") as stream:
        for line in stream:
            if line.endswith("\n"):
                yield line[:-1]


def _remove_cut_off_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(path, whole)
