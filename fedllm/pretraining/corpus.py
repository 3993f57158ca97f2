"""Public documents from text, JSON Lines and Parquet files, one after another."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fedllm.errors import ConfigError, DataError

_TEXT_PIECE_CHARACTERS = 1 << 20


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
        If there is none.
    """
    paths = [Path(p) for p in sorted(glob.glob(location, recursive=True)) if Path(p).is_file()]
    if not paths:
        raise DataError(f"there is no file {location}", "check the path or pattern")
    return paths


def read_documents(location: str, text: str) -> Iterator[Document]:
    r"""Read the documents of all files that ``location`` names; empty texts are left out.

    Parameters
    ----------
    location : str
        Path or glob pattern. A text file is one document, cut at line ends into pieces
        of about a million characters.
    text : str
        Column, or a template such as ``"{question}\n{answer}"``; text files ignore it.

    Raises
    ------
    DataError
        If a file is missing, has no known extension, or a row is not as expected; names
        file, row and column.
    """
    for path in corpus_files(location):
        for document in _reader(path, text):
            if document.text.strip():
                yield document


def _reader(path: Path, text: str) -> Iterator[Document]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".txt"):
        return _read_text(path)
    if name.endswith(".jsonl"):
        return _read_json_lines(path, _composer(text))
    if path.name.endswith(".parquet"):
        return _read_parquet(path, text)
    raise DataError(f"{path}: unknown kind of file", "use .txt, .jsonl (both also .gz) or .parquet")


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _lines(path: Path) -> Iterator[str]:
    try:
        with _open_text(path) as stream:
            yield from stream
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "check that it is complete UTF-8"
        ) from None


def _read_text(path: Path) -> Iterator[Document]:
    piece: list[str] = []
    size = start = 0
    for number, line in enumerate(_lines(path), 1):
        start = start or number
        piece.append(line)
        size += len(line)
        if size >= _TEXT_PIECE_CHARACTERS:
            yield Document("".join(piece), f"{path.name}:{start}")
            piece, size, start = [], 0, 0
    if piece:
        yield Document("".join(piece), f"{path.name}:{start}")


def _read_json_lines(
    path: Path, compose: Callable[[Mapping[str, Any], str], str]
) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        origin = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{origin}: not valid JSON", "one JSON object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{origin}: not a JSON object", "one JSON object a line")
        yield Document(compose(row, origin), origin)


def _read_parquet(path: Path, text: str) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"{path} needs pyarrow", "install it: pip install 'fedllm[parquet]'"
        ) from None
    compose = _composer(text)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            columns = [c for c in _columns(text) if c in present]
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    origin = f"{path.name}:{number}"
                    yield Document(compose(row, origin), origin)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}", "check that it is Parquet") from None


def _columns(text: str) -> list[str]:
    if "{" not in text:
        return [text]
    try:
        names = [name for _, name, spec, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ConfigError(f"data.text = {text!r}: {error}", "write {{ for a brace") from None
    return names


def _composer(text: str) -> Callable[[Mapping[str, Any], str], str]:
    columns = _columns(text)
    template = text if "{" in text else "{" + text + "}"
    parts = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]

    def compose(row: Mapping[str, Any], origin: str) -> str:
        for column in columns:
            if not isinstance(row.get(column), str):
                kind = "is missing" if column not in row else "is not text"
                raise DataError(
                    f"{origin}: column '{column}' {kind}",
                    f"columns there: {', '.join(map(str, row))}",
                )
        return "".join(lit + (row[name] if name is not None else "") for lit, name in parts)

    return compose
