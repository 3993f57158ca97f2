"""Rows of files: JSON Lines, CSV and Parquet."""

from __future__ import annotations

import csv
import difflib
import glob
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedllm.data.columns import ColumnMap, MissingColumnError, Row
from fedllm.data.parquet import parquet_columns, parquet_rows
from fedllm.data.text_files import row_lines
from fedllm.data.values import Repeating, json_object
from fedllm.errors import DataError

_SEPARATORS = (",", ";", "\t", "|")
# Of JSON Lines, whose keys are taken for the columns.
_FIRST_ROWS = 100


def data_files(location: str) -> list[Path]:
    """List the files that a path or glob pattern names, sorted.

    A file whose own name looks like a pattern is itself.

    Raises
    ------
    DataError
        If it is a folder, an installed package, or a pattern that no file matches.
    """
    if location.startswith("package:"):
        raise DataError(
            f"{location}: data cannot be named by an installed package",
            "give the path of the file; only model.path may begin with package:",
        )
    path = Path(location)
    # These do not raise for names that the file system refuses.
    if os.path.isdir(path):
        raise DataError(
            f"{location} is a folder", f"name its files by a pattern: {path / '*.jsonl'}"
        )
    if os.path.exists(path) or not glob.has_magic(location):
        return [path]
    matches = sorted(Path(match) for match in glob.glob(location, recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        raise DataError(f"no file matches {location}", "check the pattern and the folder")
    return files


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
        return json_rows(row_lines(path), str(path), columns)
    if text_name.endswith(".csv"):
        return _csv_rows(path, columns)
    if name.endswith(".parquet"):
        return parquet_rows(path, columns)
    raise DataError(
        f"{path}: the file's name does not tell its format",
        "use .jsonl, .jsonl.gz, .csv, .csv.gz or .parquet",
    )


def file_columns(path: Path) -> list[str]:
    """Return the names of a file's columns: of JSON Lines, the keys of its first rows.

    Raises
    ------
    DataError
        As `file_rows`, or if the file holds no rows, or lines of which none is a JSON object.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        return parquet_columns(path)
    anything = ColumnMap({}, {})
    if name.removesuffix(".gz").endswith(".csv"):
        lines, separator = _separated(row_lines(path), anything)
        try:
            names = next((row for row in csv.reader(lines, delimiter=separator) if row), [])
        except csv.Error as error:
            raise DataError(
                f"{path}: the first line is not valid CSV", _csv_remedy(error)
            ) from None
    else:
        first = list(itertools.islice(file_rows(path, anything), _FIRST_ROWS))
        names = list(dict.fromkeys(name for row in first for name in row.fields))
        if first and not names:
            raise DataError(
                f"{first[0].where(str(path))} {first[0].problem or 'has no fields'}",
                "let each line be one JSON object with the fields of a record",
            )
    if not names:
        raise DataError(f"{path} holds no rows", "check that it is the right file")
    return names


def json_rows(lines: Iterable[str], source: str, columns: ColumnMap) -> Iterator[Row]:
    """Yield the rows of JSON Lines; errors as `file_rows`."""
    number, checked = 0, False
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        number += 1
        if number == 1 and text.lstrip().startswith("["):
            raise DataError(
                f"{source} holds a JSON array, not JSON Lines",
                "write one JSON object a line, for example: jq -c '.[]' old.json > new.jsonl",
            )
        value, problem = _json_object(text, columns)
        if not problem and not checked:
            columns.check(list(value), Row(number, line, {}).where(source))
            checked = True
        yield Row(number, line, value, problem)


def _json_object(text: str, columns: ColumnMap) -> tuple[dict[str, object], str]:
    """Read one line; gives the object, or an empty one and what is wrong with it."""
    try:
        value = json.loads(text, object_pairs_hook=json_object)
    except json.JSONDecodeError as error:
        # The decoder's own words may quote the text.
        return {}, f"is not valid JSON at character {error.pos + 1}"
    except (ValueError, RecursionError):
        return {}, "is JSON with a number too long or nested too deep"
    if not isinstance(value, dict):
        return {}, "is not a JSON object"
    if isinstance(value, Repeating):
        for name in columns.names:
            if name in value.repeated:
                return {}, f"has the key '{name}' more than once"
    return value, ""


def _csv_rows(path: Path, columns: ColumnMap) -> Iterator[Row]:
    lines, separator = _separated(row_lines(path), columns)
    # Not strict, an open quote would swallow the rest of the file as one field.
    reader = csv.reader(lines, delimiter=separator, strict=True)
    line = 1
    try:
        header = next((row for row in reader if row), [])
        if header:
            _check_header(header, columns, f"{path} (header, line {reader.line_num})")
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
            f"{path}: the row that starts at line {line} is not valid CSV", _csv_remedy(error)
        ) from None


def _check_header(header: list[str], columns: ColumnMap, where: str) -> None:
    """Check the columns; a first line that names none of them may be a private row."""
    names = [name.strip().lower() for name in header]
    if not any(difflib.get_close_matches(c.lower(), names, cutoff=0.5) for c in columns.names):
        role, column = next(iter(columns.required.items()))
        raise MissingColumnError(
            f"{where} has no column '{column}', nor one of a similar name, among its {len(header)}",
            f"let the first line name the columns, and set data.{role} to one of them",
        )
    columns.check(header, where)


def _separated(lines: Iterator[str], columns: ColumnMap) -> tuple[Iterator[str], str]:
    """Find the separator whose header has the columns, else the one with most fields."""
    head: list[str] = []
    for text in lines:
        head.append(text)
        if text.strip("\r\n"):
            break

    def fitness(separator: str) -> tuple[bool, int]:
        try:
            header = next(csv.reader(head[-1:], delimiter=separator, strict=True), [])
        except csv.Error:
            return False, 0
        return set(columns.required.values()) <= set(header), len(header)

    # The comma stands first, and of equals the first is taken.
    return itertools.chain(head, lines), max(_SEPARATORS, key=fitness)


def _csv_remedy(error: csv.Error) -> str:
    words = str(error)
    if "field limit" in words:
        return f"texts over {csv.field_size_limit()} characters need JSON Lines"
    if "new-line" in words:
        return "put fields that hold a CR in double quotes, or let all lines end in LF"
    return "check the double quotes there"
