"""Which column of a source plays which role, and the check that it is there."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedllm.config import DataSection, Task
from fedllm.config.task import Kind, columns_read, may_lack
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
    kind : {"text", "name", "spans", "texts", "numbers"}
        Free text, a short name that comes back in many rows and may be a whole number, the spans
        of the text, or a list of texts or of numbers.
    needed : bool
        Whether each source has it, and each row something in it.
    """

    name: str
    kind: Kind
    needed: bool = True


class MissingColumnError(DataError):
    """A source lacks a column that the task needs."""

    def of_a_file(self, needed: Sequence[str], more: Sequence[str] = ()) -> DataError:
        """Return the same of a file for which no key can name another column.

        Parameters
        ----------
        needed, more : sequence of str
            Columns that each row must have, and those that it may have.
        """
        must, may = (" and ".join(f"'{name}'" for name in names) for names in (needed, more))
        also = f"; it may also have {may}" if may else ""
        these = "this very name" if len(needed) == 1 else "these very names"
        return DataError(self.message, f"give each row {must} under {these}{also}")


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
        Roles that hold free text; the others hold names, or what ``kinds`` says.
    blank : frozenset of str
        Roles that may be empty in a row.
    kinds : Mapping of str to str
        Of roles that hold something else: "spans", "texts" or "numbers".
    either : tuple of tuple of str
        Groups of optional roles; a source has one of them whole.
    """

    required: Mapping[str, str]
    optional: Mapping[str, str]
    texts: frozenset[str] = frozenset()
    blank: frozenset[str] = frozenset()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    either: tuple[tuple[str, ...], ...] = ()

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
        self._check_either(counts, present, where)
        for column in self.names:
            if counts[column] > 1:
                raise DataError(
                    f"{where} has {counts[column]} columns '{column}'",
                    "rename all but one of them",
                )

    def _check_either(self, counts: Counter[str], present: Sequence[str], where: str) -> None:
        if not self.either or any(
            all(self.optional[role] in counts for role in group) for group in self.either
        ):
            return
        ways = " nor ".join(
            " and ".join(f"'{self.optional[role]}'" for role in group) for group in self.either
        )
        lacking = [[r for r in group if self.optional[r] not in counts] for group in self.either]
        missing = min(lacking, key=len)[0]
        raise MissingColumnError(
            f"{where} has neither columns {ways}; columns there: {_listed(present)}",
            _suggestion(missing, self.optional[missing], present),
        )


def task_columns(task: Task, data: DataSection) -> dict[str, Column]:
    """Return the columns that a task reads, by role; a role is the key that names the column."""
    lacking = may_lack(task)
    return {
        role: Column(getattr(data, role), kind, role not in lacking)
        for role, kind in columns_read(task).items()
    }


def column_map(
    data: DataSection,
    columns: Mapping[str, Column],
    *,
    public_test: bool,
    either: tuple[tuple[str, ...], ...] = (),
) -> ColumnMap:
    """Build the map of a task's columns; the public test file may lack the unit and site columns.

    Parameters
    ----------
    columns : Mapping of str to Column
        What the task reads, by role; a role is the key of ``data`` that names the column.
    either : tuple of tuple of str
        See `ColumnMap`.
    """
    values = {role: column.name for role, column in columns.items() if column.needed}
    lacking = {role: column.name for role, column in columns.items() if not column.needed}
    texts = frozenset(role for role, column in columns.items() if column.kind == "text")
    kinds = {r: c.kind for r, c in columns.items() if c.kind not in ("text", "name")}
    about = {role: column for role in ("unit", "site") if (column := getattr(data, role))}
    blank = frozenset(lacking)
    if public_test:
        return ColumnMap(values, about | lacking, texts, blank, kinds, either)
    group = {"group": data.group} if data.group else {}
    required = {**values, **about, **group}
    return ColumnMap(required, lacking, texts, blank.union(group), kinds, either)


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
