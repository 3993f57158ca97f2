"""Read records from files or a database, by the columns the configuration names."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping

from fedllm.config import DataSection, Task
from fedllm.config.task import either_of
from fedllm.data.columns import Column, ColumnMap, Row, column_map, task_columns
from fedllm.data.rankings import numbers_value, texts_value
from fedllm.data.readers import data_files, file_rows
from fedllm.data.records import Record, RowProblems, cap_records_per_unit
from fedllm.data.spans import spans_value
from fedllm.data.spelling import read_aloud
from fedllm.data.values import BadValueError, present_value, text_value
from fedllm.errors import DataError

_ROW_REMEDY = "correct these rows or take them out of the source; no row is dropped silently"


def read_records(
    location: str,
    data: DataSection,
    roles: Mapping[str, Column] | Task,
    either: tuple[tuple[str, ...], ...] = (),
) -> list[Record]:
    """Read all records of a source.

    Parameters
    ----------
    location : str
        Path, glob pattern (files in sorted order) or SQL URL; usually ``data.train`` or
        ``data.test``. The public test file may lack the unit and site columns, and must be
        a file.
    data : DataSection
        Column names, the SQL query, and ``max_records_per_unit``, which is applied to
        training records as `cap_records_per_unit` says.
    roles : Mapping of str to Column, or name of a task
        Which columns are read, and what for; a task says it.
    either : tuple of tuple of str
        Groups of roles that a source may lack, one of which has to be there whole; the task's
        where it is named.

    Returns
    -------
    list of Record
        At least one, in the order of the source. Labels that are whole numbers become
        text, sites and groups are text without white space around it; a record may have no group.
        Units are in one spelling: a person whose name is written in two normal forms of Unicode,
        in upper and in lower case, in wide characters, or with invisible ones, is one person.

    Raises
    ------
    DataError
        If the source is missing, empty or damaged, lacks a column, or has a single row
        that cannot be used: names file, row, line and field, and quotes no value.
    """
    if isinstance(roles, str):
        either = either_of(roles)
        roles = task_columns(roles, data)
    public_test = location == data.test and location != data.train
    columns = column_map(data, roles, public_test=public_test, either=either)
    problems = RowProblems()
    records: list[Record] = []
    for name, rows in _tables(location, data, columns):
        before = len(records) + problems.count
        records.extend(_records_of(name, rows, columns, roles, problems))
        if len(records) + problems.count == before:
            raise DataError(f"{name} holds no rows", "check that it is the right source")
    problems.raise_if_any()
    if data.unit is not None and not public_test:
        return cap_records_per_unit(records, data.max_records_per_unit)
    return records


def _tables(
    location: str, data: DataSection, columns: ColumnMap
) -> Iterator[tuple[str, Iterator[Row]]]:
    if "://" in location:
        if location == data.test:
            raise DataError(
                "data.test is a SQL URL, but data.query selects training records",
                "give the public test records as a file",
            )
        from fedllm.data.sql import query_rows

        yield "query", query_rows(location, data.query, columns, data.query_timeout_s)
        return
    paths = data_files(location)
    # With one file this is its folder, with many the deepest folder they share.
    root = os.path.commonpath([path.absolute().parent for path in paths])
    for path in paths:
        yield os.path.relpath(path.absolute(), root), file_rows(path, columns)


def _records_of(
    name: str,
    rows: Iterable[Row],
    columns: ColumnMap,
    roles: Iterable[str],
    problems: RowProblems,
) -> Iterator[Record]:
    for row in rows:
        if row.problem:
            problems.add(row.where(name), row.problem, _ROW_REMEDY)
            continue
        try:
            values = {
                role: _required(role, column, row.fields, role in columns.texts)
                for role, column in columns.required.items()
                if role not in columns.kinds
                and not (role in columns.blank and _is_blank(row.fields.get(column)))
            }
            for role, column in columns.optional.items():
                found = row.fields.get(column)
                blank = _is_blank(found) if role in columns.blank else found is None
                if not blank and role not in columns.kinds:
                    values[role] = _required(role, column, row.fields, role in columns.texts)
            values |= _of_kinds(columns, row.fields, values)
        except BadValueError as error:
            problems.add(row.where(name), str(error), error.remedy or _ROW_REMEDY)
            continue
        yield Record(
            values={role: values[role] for role in roles if role in values},
            unit=values.get("unit"),
            site=values.get("site"),
            origin=f"{name}:{row.line or row.number}",
            row=row.number,
            columns={**columns.required, **columns.optional},
            group=values.get("group"),
        )


def _of_kinds(
    columns: ColumnMap, fields: Mapping[str, object], values: Mapping[str, str]
) -> dict[str, str]:
    """Return what is neither text nor name, in one form; needs the text that spans are of."""
    found = {}
    for role, kind in columns.kinds.items():
        column = {**columns.optional, **columns.required}[role]
        if role in columns.blank and _is_blank(fields.get(column)):
            continue
        value = _present(column, fields)
        if kind == "spans":
            found[role] = spans_value(value, column, values["text"])
        else:
            found[role] = (texts_value if kind == "texts" else numbers_value)(value, column)
    return found


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _required(role: str, column: str, fields: Mapping[str, object], free_text: bool) -> str:
    value = _present(column, fields)
    # The same few names come back in many rows: keep one copy of each.
    text = text_value(value, column) if free_text else sys.intern(_name(value, column))
    if role in ("site", "group"):
        text = text.strip()
    if role == "unit":
        # Two persons taken for one are protected together; one taken for two pays twice.
        text = sys.intern(read_aloud(text))
    if not text.strip():
        raise BadValueError(f"field '{column}' is empty")
    return text


def _present(column: str, fields: Mapping[str, object]) -> object:
    if column not in fields:
        raise BadValueError(f"field '{column}' is missing")
    return present_value(fields[column], column)


def _name(value: object, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | uuid.UUID):
        kind = type(value).__name__
        raise BadValueError(f"field '{column}' is of type {kind}, not text or a whole number")
    return text_value(str(value), column)
