"""A field that a source holds and that cannot be read."""

from __future__ import annotations

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
