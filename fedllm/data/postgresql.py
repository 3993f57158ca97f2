"""Values of PostgreSQL, read without an error that would quote them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

from fedllm.data.values import Unreadable, text_or_unreadable
from fedllm.errors import DataError

_TEXT_TYPES = ("text", "varchar", "bpchar", "name", '"char"')
_READ_TYPES = (*_TEXT_TYPES, "int2", "int4", "int8", "oid", "uuid")
# The loader of types that psycopg does not know, such as an enumeration.
_OTHERS = 0


class _Text(Loader):
    """Load a text; databases of encoding SQL_ASCII hold any bytes."""

    def load(self, data: Buffer) -> str | Unreadable:
        return text_or_unreadable(bytes(data))


def read_texts(connection: Any) -> None:
    """Let a psycopg connection give `Unreadable` for texts that are not UTF-8."""
    for name in _TEXT_TYPES:
        connection.adapters.register_loader(name, _Text)
    connection.adapters.register_loader(_OTHERS, _Text)


def check_types(cursor: Any, names: Sequence[str], where: str) -> None:
    """Check that a cursor's columns of these names hold text, whole numbers or UUIDs.

    Raises
    ------
    DataError
        Names the column and its type.
    """
    adapters = cursor.adapters
    for column in cursor.description:
        known = adapters.types.get(column.type_code)
        if (
            column.name in names
            and known is not None
            and known.name not in _READ_TYPES
            # A type without a loader of its own is read as text.
            and adapters.get_loader(column.type_code, Format.TEXT) is not None
        ):
            raise DataError(
                f"column '{column.name}' of {where} is of type {known.name}, not text or a "
                "whole number",
                f"write '{column.name}::text' in data.query, or name another column",
            )
