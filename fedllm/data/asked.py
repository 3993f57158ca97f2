"""Texts that somebody asks a model about: from a file of rows, lines of text, or a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from fedllm.data.columns import ColumnMap, MissingColumnError, Row
from fedllm.data.questions import question
from fedllm.data.readers import data_files, file_rows, json_rows
from fedllm.data.records import RowProblems
from fedllm.data.text_files import decoded_lines, lines_of_rows, row_lines
from fedllm.data.values import BadValueError, present_value, text_value
from fedllm.errors import DataError

STANDARD_INPUT = "-"
_ROWS = (".jsonl", ".json", ".csv", ".parquet")
_TEXT, _CONTEXT = "text", "context"
_REMEDY = "correct these rows or take them out; no row is left out silently"


@dataclass(frozen=True, slots=True)
class Asked:
    """One text.

    Attributes
    ----------
    row : int
        Its place, from 1.
    text : str
        Never empty, always valid Unicode.
    key : str or int, optional
        What the row has in its field ``id``, by which answers are found again.
    context : str
        What it is about; empty where nothing is said of that.
    """

    row: int
    text: str = field(repr=False)
    key: str | int | None = None
    context: str = field(default="", repr=False)

    @property
    def whole(self) -> str:
        """What a model reads: the text behind its context."""
        return question(self.text, self.context)


def read_asked(
    location: str, column: str, stream: BinaryIO | None, context: str | None = None
) -> list[Asked]:
    """Read all texts of a file.

    Parameters
    ----------
    location : str
        A path or a glob pattern, or "-". ``.jsonl``, ``.json``, ``.csv`` and ``.parquet`` have
        rows; all else is JSON Lines if it begins with ``{``, and otherwise one text a line.
    column : str
        Where rows have the text.
    stream : BinaryIO, optional
        What "-" stands for; without it, "-" is a file's name.
    context : str, optional
        Where rows have what the text is about; single rows may lack it.

    Raises
    ------
    DataError
        If the source is missing, damaged or empty, lacks the column, or has a single row without
        a text: names file, row, line and field, and quotes no text.
    """
    about = {} if context is None else {_CONTEXT: context}
    columns = ColumnMap({_TEXT: column}, {"id": "id", **about}, frozenset([_TEXT, *about]))
    problems, found = RowProblems(), list[Asked]()
    for source, rows in _sources(location, columns, stream):
        before = len(found) + problems.count
        try:
            for row in rows:
                try:
                    found.append(_asked(row, column, context, len(found) + problems.count + 1))
                except BadValueError as error:
                    problems.add(row.where(source), str(error), error.remedy or _REMEDY)
        except MissingColumnError as error:
            raise error.of_a_file([column]) from None
        if len(found) + problems.count == before:
            raise DataError(f"{source} holds no texts", "check that it is the right source")
    problems.raise_if_any()
    return found


def _asked(row: Row, column: str, context: str | None, number: int) -> Asked:
    if row.problem:
        raise BadValueError(row.problem)
    text = text_value(present_value(row.fields.get(column), column), column)
    if not text.strip():
        raise BadValueError(f"field '{column}' is empty")
    key = row.fields.get("id")
    if isinstance(key, bool) or not isinstance(key, str | int):
        key = None
    about = None if context is None else row.fields.get(context)
    told = "" if context is None or about in (None, "") else text_value(about, context)
    return Asked(number, text, key, told)


def _sources(
    location: str, columns: ColumnMap, stream: BinaryIO | None
) -> Iterator[tuple[str, Iterator[Row]]]:
    if location == STANDARD_INPUT and stream is not None:
        source = "standard input"
        yield source, _rows(lines_of_rows(decoded_lines(stream, source), source), source, columns)
        return
    for path in data_files(location):
        yield str(path), rows_asked(path, columns)


def rows_asked(path: Path, columns: ColumnMap) -> Iterator[Row]:
    """Yield a file's rows in the form that `read_asked` takes it for; errors as there."""
    if path.name.lower().removesuffix(".gz").endswith(_ROWS):
        return file_rows(path, columns)
    return _rows(row_lines(path), str(path), columns)


def _rows(lines: Iterator[str], source: str, columns: ColumnMap) -> Iterator[Row]:
    """Read lines whose form their first one tells."""
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    whole: Iterable[str] = chain(head, lines)
    if head and head[-1].lstrip().startswith("{"):
        yield from json_rows(whole, source, columns)
        return
    (column,) = columns.required.values()
    if not head or not head[-1].strip():
        return
    for place, line in enumerate(whole, 1):
        # Left out, it would move all answers after it to another line.
        blank = "" if line.strip() else "the line is blank"
        yield Row(place, place, {column: line.rstrip("\r\n")}, blank)
