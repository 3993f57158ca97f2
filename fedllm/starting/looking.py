"""The first rows of a source whose columns nobody has named yet, and how many rows it has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fedllm.data.columns import ColumnMap, Row
from fedllm.data.parquet import parquet_count
from fedllm.data.readers import data_files, file_columns, file_rows
from fedllm.data.records import RowProblems
from fedllm.data.text_files import opened
from fedllm.errors import DataError

# What is guessed from; all rows of most files.
LOOKED_ROWS = 20_000
_CHUNK_BYTES = 1 << 20
QUERY_TIMEOUT_S = 600.0
_REMEDY = "correct these rows or take them out of the file; no row is left out silently"


@dataclass(frozen=True)
class Source:
    """Where rows come from, as a configuration names it.

    Attributes
    ----------
    location : str
        Path, glob pattern or SQL URL.
    query : str, optional
        The SELECT of a database.
    """

    location: str = field(repr=False)
    query: str | None = None

    @property
    def is_database(self) -> bool:
        """Whether a query gives the rows."""
        return "://" in self.location

    @property
    def files(self) -> list[Path]:
        """Its files, sorted; none of a database."""
        return [] if self.is_database else data_files(self.location)

    @property
    def called(self) -> str:
        """What people call it, without a password."""
        if self.is_database:
            return "the database"
        return Path(self.location).name

    def columns(self) -> tuple[str, ...]:
        """Return the names of its columns, those of the first file first.

        Raises
        ------
        DataError
            If it cannot be read, or has none.
        """
        if self.is_database:
            from fedllm.data.sql import query_columns

            found = query_columns(self.location, self.query or "", QUERY_TIMEOUT_S)
        else:
            found = [name for path in self.files for name in file_columns(path)]
        return tuple(dict.fromkeys(found))

    def rows(self, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
        """Yield every row with these columns, where it has them, behind the name of its file."""
        wanted = ColumnMap({}, {name: name for name in columns})
        if self.is_database:
            from fedllm.data.sql import query_rows

            for row in query_rows(self.location, self.query, wanted, QUERY_TIMEOUT_S):
                yield "query", row
            return
        for path in self.files:
            for row in file_rows(path, wanted):
                yield path.name, row


@dataclass(frozen=True)
class Sample:
    """The first rows of a source.

    Attributes
    ----------
    source : Source
        What was looked at.
    columns : tuple of str
        Names of its columns.
    rows : tuple of Mapping
        At least one, and at most `LOOKED_ROWS`.
    whole : bool
        Whether these are all.
    count : int
        How many rows the source has.
    about : bool
        Whether that is a count of lines, some of which may be within a field.
    """

    source: Source
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, object], ...] = field(repr=False)
    whole: bool
    count: int
    about: bool = False


def look(source: Source, most: int = LOOKED_ROWS) -> Sample:
    """Read the first rows of a source, and count the others without keeping them.

    Raises
    ------
    DataError
        If it is missing, empty or damaged, or one of the first rows cannot be read.
    """
    columns = source.columns()
    problems, rows = RowProblems(), list[Mapping[str, object]]()
    found = source.rows(columns)
    for name, row in itertools.islice(found, most):
        if row.problem:
            problems.add(row.where(name), row.problem, _REMEDY)
        else:
            rows.append(row.fields)
    problems.raise_if_any()
    if not rows:
        raise DataError(f"{source.called} holds no rows", "check that it is the right source")
    if next(found, None) is None:
        return Sample(source, columns, tuple(rows), True, len(rows))
    return Sample(source, columns, tuple(rows), False, *_count(source))


def _count(source: Source) -> tuple[int, bool]:
    if source.is_database:
        return _count_of_query(source), False
    counts = [_count_of_file(path) for path in source.files]
    return sum(count for count, _ in counts), any(about for _, about in counts)


def _count_of_query(source: Source) -> int:
    from fedllm.data.sql import query_rows

    counting = f"SELECT COUNT(*) AS n FROM (\n{source.query}\n) AS counted"  # noqa: S608
    (row,) = query_rows(source.location, counting, ColumnMap({}, {"n": "n"}), QUERY_TIMEOUT_S)
    return int(str(row.fields["n"]))


def _count_of_file(path: Path) -> tuple[int, bool]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return parquet_count(path), False
    with opened(path) as stream:
        lines = _lines(stream)
    header = name.removesuffix(".gz").endswith(".csv")
    return max(0, lines - header), header


def _lines(stream: BinaryIO) -> int:
    count, last = 0, b"\n"
    while chunk := stream.read(_CHUNK_BYTES):
        count, last = count + chunk.count(b"\n"), chunk[-1:]
    return count + (last != b"\n")
