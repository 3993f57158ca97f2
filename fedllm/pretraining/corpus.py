"""Public documents from text files and from rows, one after another."""

from __future__ import annotations

import hashlib
import io
import itertools
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedllm.data.columns import ColumnMap
from fedllm.data.readers import data_files, file_rows
from fedllm.data.text_files import opened, text_lines
from fedllm.data.values import BadValueError, text_value
from fedllm.errors import ConfigError, DataError
from fedllm.pretraining.config import TextDocuments

_TEXT_PIECE_CHARACTERS = 1 << 20
_ROW_REMEDY = "correct the row or take it out of the file"


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it stands, such as ``train.jsonl.gz:17``."""

    text: str
    origin: str

    def digest(self) -> bytes:
        """Return 16 bytes that are equal for texts that differ in white space only."""
        normal = " ".join(self.text.split())
        return hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=16).digest()


def corpus_files(location: str) -> list[Path]:
    """List the files that a path or glob pattern names, sorted.

    Raises
    ------
    DataError
        If there is none, or one of them cannot be opened.
    """
    paths = data_files(location)
    for path in paths:
        with opened(path):
            pass
    return paths


def read_documents(
    location: str, text: str, text_documents: TextDocuments = "file"
) -> Iterator[Document]:
    r"""Read the documents of all files that ``location`` names; empty texts are left out.

    Parameters
    ----------
    location : str
        Path or glob pattern.
    text : str
        Column, or a template such as ``"{question}\n{answer}"``; text files ignore it.
    text_documents : {"file", "blank_line", "line"}
        What ends a document of a text file. A document is cut at line ends into pieces of
        about a million characters.

    Raises
    ------
    DataError
        If a file is missing or damaged, has no known extension, or a row is not as
        expected; names file, row and column.
    """
    for path in data_files(location):
        for document in _reader(path, text, text_documents):
            if document.text.strip():
                yield document


def _reader(path: Path, text: str, text_documents: TextDocuments) -> Iterator[Document]:
    if path.name.lower().removesuffix(".gz").endswith(".txt"):
        return _read_text(path, text_documents)
    return _read_rows(path, text)


def _read_text(path: Path, text_documents: TextDocuments) -> Iterator[Document]:
    # Line ends of any kind become LF.
    lines = itertools.chain.from_iterable(
        io.StringIO(line, newline=None) for line in text_lines(path)
    )
    piece: list[str] = []
    size = start = 0
    for number, line in enumerate(lines, 1):
        start = start or number
        piece.append(line)
        size += len(line)
        ends = text_documents == "line" or (text_documents == "blank_line" and not line.strip())
        if ends or size >= _TEXT_PIECE_CHARACTERS:
            yield Document("".join(piece), f"{path.name}:{start}")
            piece, size, start = [], 0, 0
    if piece:
        yield Document("".join(piece), f"{path.name}:{start}")


def _read_rows(path: Path, text: str) -> Iterator[Document]:
    parts = _template(text)
    names = list(dict.fromkeys(name for _, name in parts if name is not None))
    roles = ("text" if n == 1 else f"text (column {n} of it)" for n in itertools.count(1))
    for row in file_rows(path, ColumnMap(dict(zip(roles, names, strict=False)), {})):
        where = row.where(str(path))
        if row.problem:
            raise DataError(f"{where} {row.problem}", _ROW_REMEDY)
        try:
            values = {name: _value(row.fields, name) for name in names}
        except BadValueError as error:
            raise DataError(f"{where}: {error}", _ROW_REMEDY) from None
        joined = "".join(literal + (values[name] if name else "") for literal, name in parts)
        yield Document(joined, f"{path.name}:{row.line or row.number}")


def _value(fields: Mapping[str, object], column: str) -> str:
    if column not in fields:
        raise BadValueError(f"field '{column}' is missing")
    return text_value(fields[column], column)


def _template(text: str) -> list[tuple[str, str | None]]:
    """Split a template into pairs of literal text and column; a bare column is one pair."""
    if "{" not in text:
        return [("", text)]
    try:
        return [(literal, name) for literal, name, _, _ in string.Formatter().parse(text)]
    except ValueError:
        raise ConfigError(
            f"data.text = {text!r}: a brace is not closed, or closed only",
            "write {{ for a brace of the text itself",
        ) from None
