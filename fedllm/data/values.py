"""A field that a source holds and that cannot be read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in a row in place of a value; ``problem`` holds no part of that value."""

    problem: str


NOT_UTF8 = Unreadable("is not UTF-8")


def text_or_unreadable(raw: bytes) -> str | Unreadable:
    """Decode the bytes of one field."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return NOT_UTF8


class BadValueError(ValueError):
    """Why a field cannot be used, in words that hold none of its content.

    Attributes
    ----------
    remedy : str
        What to do beside what helps with every such row; may be empty.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy


class Repeating(dict[str, object]):
    """A JSON object with keys that were there more than once: those of ``repeated``."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.repeated = {key for key, n in Counter(key for key, _ in pairs).items() if n > 1}


def json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a JSON object of its keys and values; the ``object_pairs_hook`` of `json.loads`."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else Repeating(pairs)


def present_value(value: object, column: str) -> object:
    """Return a value that is there and could be read.

    Raises
    ------
    BadValueError
        If it is null or an `Unreadable`.
    """
    if value is None:
        raise BadValueError(f"field '{column}' is null")
    if isinstance(value, Unreadable):
        raise BadValueError(f"field '{column}' {value.problem}")
    return value


def list_value(value: object, what: str, remedy: str) -> list[object]:
    """Return a list, which a source may also hold as JSON.

    Raises
    ------
    BadValueError
        If it is something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=json_object)
        except (ValueError, RecursionError):
            # The decoder's own words may quote the field.
            raise BadValueError(f"{what} is not valid JSON", remedy) from None
    if not isinstance(value, list):
        raise BadValueError(f"{what} is not a list", remedy)
    return value


def text_value(value: object, column: str) -> str:
    """Return a value that is a text and valid Unicode.

    Raises
    ------
    BadValueError
        If it is something else.
    """
    present_value(value, column)
    if not isinstance(value, str):
        raise BadValueError(f"field '{column}' is of type {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadValueError(f"field '{column}' is not valid Unicode (lone surrogate)") from None
    return value
