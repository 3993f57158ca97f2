"""Rows of JSON Lines, CSV and Parquet files."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fedllm.data.columns import ColumnMap, Row
from fedllm.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_BATCH_ROWS = 4096


def file_rows(path: Path, columns: ColumnMap) -> Iterator[Row]:
    """Yield the rows of one file, its format taken from the file's name.

    Blank lines of text files are no rows. A row that is damaged by itself is yielded with
    its ``problem``; damage that hides where the next row starts ends the reading.

    Raises
    ------
    DataError
        If the file is missing, damaged, of an unknown format or encoding, or lacks a
        column.
    """
    name = path.name.lower()
    text_name = name.removesuffix(".gz")
    if text_name.endswith((".jsonl", ".json")):
        return _json_rows(path, columns)
    if text_name.endswith(".csv"):
        return _csv_rows(path, columns)
    if name.endswith(".parquet"):
        return _parquet_rows(path, columns)
    raise DataError(
        f"{path}: the file's name does not tell its format",
        "use .jsonl, .jsonl.gz, .csv, .csv.gz or .parquet",
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as unpacked:
                yield cast("BinaryIO", unpacked)
        else:
            with path.open("rb") as stream:
                yield stream
    except FileNotFoundError:
        raise DataError(f"there is no file {path}", "check data.train and data.test") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(
            f"{path} is not a whole gzip file", "copy it again, or pack it again with gzip"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from None


def _text_lines(path: Path) -> Iterator[str]:
    """Yield lines that end in LF alone: JSON and CSV texts may hold other line ends."""
    with _opened(path) as stream:
        for number, raw in enumerate(stream, 1):
            content = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                line = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} line {number}: byte {error.start + 1} of the line is not UTF-8",
                    _encoding_remedy(content),
                ) from None
            yield line


def _encoding_remedy(content: bytes) -> str:
    if content.startswith(_GZIP_MAGIC):
        return "the file is packed with gzip: give its name the ending .gz"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "the file is UTF-16: save it as UTF-8"
    return "save the file as UTF-8"


def _json_rows(path: Path, columns: ColumnMap) -> Iterator[Row]:
    number, checked = 0, False
    for line, text in enumerate(_text_lines(path), 1):
        if not text.strip():
            continue
        number += 1
        if number == 1 and text.lstrip().startswith("["):
            raise DataError(
                f"{path} holds a JSON array, not JSON Lines",
                "write one JSON object a line, for example: jq -c '.[]' old.json > new.jsonl",
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            # The decoder's own words may quote the text.
            yield Row(number, line, {}, f"is not valid JSON at character {error.pos + 1}")
            continue
        except (ValueError, RecursionError):
            yield Row(number, line, {}, "is JSON with a number too long or nested too deep")
            continue
        if not isinstance(value, dict):
            yield Row(number, line, {}, "is not a JSON object")
            continue
        if not checked:
            columns.check(list(value), Row(number, line, {}).where(str(path)))
            checked = True
        yield Row(number, line, value)


def _csv_rows(path: Path, columns: ColumnMap) -> Iterator[Row]:
    # Not strict, an open quote would swallow the rest of the file as one field.
    reader = csv.reader(_text_lines(path), strict=True)
    line = 1
    try:
        header = next((row for row in reader if row), [])
        if header:
            columns.check(header, f"{path} (header, line {reader.line_num})")
        number, line = 0, reader.line_num + 1
        for row in reader:
            if row:
                number += 1
                problem = (
                    f"has {len(row)} fields, the header has {len(header)}"
                    if len(row) != len(header)
                    else ""
                )
                yield Row(
                    number, line, {} if problem else dict(zip(header, row, strict=True)), problem
                )
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: the row that starts at line {line} is not valid CSV: {error}",
            "check the double quotes there; texts over 131072 characters need JSON Lines",
        ) from None


def _parquet_rows(path: Path, columns: ColumnMap) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs the package pyarrow",
            "pip install 'fedllm[parquet]'",
        ) from None
    number = 0
    with _opened(path) as stream:
        try:
            with pq.ParquetFile(stream) as table:
                present = table.schema_arrow.names
                columns.check(present, str(path))
                wanted = [name for name in columns.names if name in present]
                for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                    for fields in batch.to_pylist():
                        number += 1
                        yield Row(number, None, fields)
        except (pa.ArrowException, OSError):
            raise DataError(
                f"{path} is not a whole Parquet file (read up to row {number})",
                "write or copy the file again",
            ) from None
