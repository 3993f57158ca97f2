"""Files opened and cut into lines of UTF-8, with errors that hold nothing of their content."""

from __future__ import annotations

import codecs
import difflib
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fedllm.errors import DataError

# How files that are no text begin, and what to do with them.
_BEGINNINGS = {
    b"\x1f\x8b": "the file is packed with gzip: give its name the ending .gz",
    b"PK\x03\x04": "the file is a zip archive or a spreadsheet: unpack it, or export it as CSV",
    b"\xfd7zXZ": "the file is packed with xz: unpack it",
    b"BZh": "the file is packed with bzip2: unpack it",
    b"\x28\xb5\x2f\xfd": "the file is packed with Zstandard: unpack it",
    b"PAR1": "the file is Parquet: give its name the ending .parquet",
    codecs.BOM_UTF16_LE: "the file is UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "the file is UTF-16: save it as UTF-8",
}


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, unpacked if its name ends in ``.gz``.

    Raises
    ------
    DataError
        If it is missing, unreadable or not a whole gzip file, also while it is read.
    """
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as unpacked:
                yield cast("BinaryIO", unpacked)
        else:
            with path.open("rb") as stream:
                yield stream
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", _where_it_may_be(path)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(
            f"{path} is not a whole gzip file", "copy it again, or pack it again with gzip"
        ) from None
    except UnicodeEncodeError:
        raise DataError(f"the path {path} is not valid Unicode", "rename the file") from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from None


def _where_it_may_be(path: Path) -> str:
    """Say how far a path leads, and what in its last folder has nearly its name."""
    path = path.absolute()
    missing = next((p for p in reversed(path.parents) if not p.is_dir()), None)
    if missing is not None:
        return (
            f"check the path: there is no folder {missing}; relative paths count from the folder "
            "of the file that names them, and the examples' data lie where FEDLLM_DATA says"
        )
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"check that this user may read {path.parent}"
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ", or put the file there"
    return f"check the name: the folder {path.parent} is there{hint}"


def text_lines(path: Path) -> Iterator[str]:
    """Yield lines that end in LF alone: JSON and CSV texts may hold other line ends.

    A byte-order mark is taken off.

    Raises
    ------
    DataError
        As `opened`, or if a line is not UTF-8: names the line.
    """
    with opened(path) as stream:
        yield from decoded_lines(stream, str(path))


def decoded_lines(stream: Iterable[bytes], source: str) -> Iterator[str]:
    """Yield the lines of what is open already; see `text_lines`."""
    for number, raw in enumerate(stream, 1):
        content = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if number == 1 and b"\0" in content[:2]:
            raise DataError(
                f"{source} line 1: the text is not UTF-8", _BEGINNINGS[codecs.BOM_UTF16_LE]
            )
        try:
            line = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source} line {number}: byte {error.start + 1} of the line is not UTF-8",
                _encoding_remedy(content),
            ) from None
        yield line


def row_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file whose rows begin on new lines, as `text_lines`.

    Raises
    ------
    DataError
        As `text_lines`, or if lines end in CR alone, so that all rows would be one line.
    """
    return lines_of_rows(text_lines(path), str(path))


def lines_of_rows(lines: Iterable[str], source: str) -> Iterator[str]:
    """Yield lines on which rows begin; see `row_lines`."""
    for number, line in enumerate(lines, 1):
        if number == 1 and "\r" in line.rstrip("\r\n"):
            raise DataError(
                f"{source}: its lines end in CR alone, as on old Macs",
                r"let them end in LF, for example: tr '\r' '\n' < old > new",
            )
        yield line


def _encoding_remedy(content: bytes) -> str:
    for beginning, remedy in _BEGINNINGS.items():
        if content.startswith(beginning):
            return remedy
    return "save the file as UTF-8"
