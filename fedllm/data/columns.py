"""Which column of a source plays which role, and the check that it is there."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fedllm.config import DataSection, Task
from fedllm.config.task import columns_read
from fedllm.errors import DataError

_SHOWN_COLUMNS = 20
# What is longer or holds punctuation may be a row of private text in a file without a header.
_LOOKS_LIKE_A_NAME = re.compile(r"[\w ./#-]{1,40}")


class Column(NamedTuple):
    """A column that a task reads.

    Attributes
    ----------
    name : str
        In the source.
    kind : {"text", "name", "spans"}
        Free text, a short name that comes back in many rows and may be a whole number, or the
        spans of the text.
    """

    name: str
    kind: Literal["text", "name", "spans"]


class MissingColumnError(DataError):
    """A source lacks a column that the task needs."""


class Row(NamedTuple):
    """One row of a source: its fields, or the problem that left it unread.

    ``number`` counts rows from 1, ``line`` is the line of a text file where it starts.
    """

    number: int
    line: int | None
    fields: Mapping[str, object]
    problem: str = ""

    def where(self, source: str) -> str:
        """Name the row for an error message."""
        line = "" if self.line is None else f" (line {self.line})"
        return f"{source} row {self.number}{line}"


@dataclass(frozen=True)
class ColumnMap:
    """Columns by role.

    Attributes
    ----------
    required : Mapping of str to str
        Role to column; each row must have them.
    optional : Mapping of str to str
        Role to column; taken where they are present.
    texts : frozenset of str
        Roles that hold free text; the others hold names, or spans.
    spans : frozenset of str
        Roles that hold spans of the text.
    blank : frozenset of str
        Required roles that may be empty in a row.
    """

    required: Mapping[str, str]
    optional: Mapping[str, str]
    texts: frozenset[str] = frozenset()
    spans: frozenset[str] = frozenset()
    blank: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """All columns that are read, each once."""
        return list(dict.fromkeys([*self.required.values(), *self.optional.values()]))

    def check(self, present: Sequence[str], where: str) -> None:
        """Check that each required column is there, and none of those read twice.

        Raises
        ------
        MissingColumnError
            Names the column, those that are there, and the nearest of them.
        DataError
            If a column is there twice.
        """
        counts = Counter(present)
        for role, column in self.required.items():
            if column not in counts:
                raise MissingColumnError(
                    f"{where} has no column '{column}'; columns there: {_listed(present)}",
                    _suggestion(role, column, present),
                )
        for column in self.names:
            if counts[column] > 1:
                raise DataError(
                    f"{where} has {counts[column]} columns '{column}'",
                    "rename all but one of them",
                )


def task_columns(task: Task, data: DataSection) -> dict[str, Column]:
    """Return the columns that a task reads, by role; a role is the key that names the column."""
    return {role: Column(getattr(data, role), kind) for role, kind in columns_read(task).items()}


def column_map(data: DataSection, columns: Mapping[str, Column], *, public_test: bool) -> ColumnMap:
    """Build the map of a task's columns; the public test file may lack the unit and site columns.

    Parameters
    ----------
    columns : Mapping of str to Column
        What the task reads, by role; a role is the key of ``data`` that names the column.
    """
    values = {role: column.name for role, column in columns.items()}
    texts = frozenset(role for role, column in columns.items() if column.kind == "text")
    spans = frozenset(role for role, column in columns.items() if column.kind == "spans")
    about = {role: column for role in ("unit", "site") if (column := getattr(data, role))}
    if public_test:
        return ColumnMap(values, about, texts, spans)
    group = {"group": data.group} if data.group else {}
    return ColumnMap({**values, **about, **group}, {}, texts, spans, frozenset(group))


def _listed(present: Sequence[str]) -> str:
    shown = [
        name if _LOOKS_LIKE_A_NAME.fullmatch(name) else f"(column {number}, no plain name)"
        for number, name in enumerate(present[:_SHOWN_COLUMNS], 1)
    ]
    more = [f"and {len(present) - _SHOWN_COLUMNS} more"] if len(present) > _SHOWN_COLUMNS else []
    return ", ".join([*shown, *more]) or "none"


def _suggestion(role: str, column: str, present: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in present if _LOOKS_LIKE_A_NAME.fullmatch(name)}
    close = difflib.get_close_matches(column.lower(), by_lower, n=3, cutoff=0.5)
    # Which of several that look alike holds what is meant, only a person can tell.
    hint = f"; did you mean {' or '.join(repr(by_lower[name]) for name in close)}?" if close else ""
    return f"set data.{role} to one of the columns{hint}"
