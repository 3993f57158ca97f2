"""Spans of a text that have a label, such as the names in it: read, checked and written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from fedllm.data.values import BadValueError, Repeating, list_value, text_value

REMEDY = (
    'give each row a JSON list such as [{"start": 0, "end": 4, "label": "NAME"}], in characters of '
    "its text from 0, the end not included, none over another; [] where there is none"
)


class Span(NamedTuple):
    """Characters ``start`` to ``end`` of a text (code points from 0, ``end`` not included)."""

    start: int
    end: int
    label: str


def spans_value(value: object, column: str, text: str) -> str:
    """Return a field's spans in one form: JSON, from the left, without what else stood there.

    Parameters
    ----------
    value : object
        A list of objects with ``start``, ``end`` and ``label``, or JSON text of one.
    column : str
        Where it was read.
    text : str
        Whose spans they are.

    Raises
    ------
    BadValueError
        If it is something else, or a span is empty, outside the text or over another one.
    """
    what = f"field '{column}'"
    spans = sorted(
        _span(entry, f"{what}: span {number}", column, len(text))
        for number, entry in enumerate(list_value(value, what, REMEDY), 1)
    )
    if any(second.start < first.end for first, second in pairwise(spans)):
        raise BadValueError(f"{what}: two spans overlap", REMEDY)
    return written(spans)


def written(spans: list[Span]) -> str:
    """Return spans as `read_back` reads them."""
    plain = [span._asdict() for span in spans]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def read_back(value: str) -> list[Span]:
    """Return the spans of a record, as `spans_value` wrote them."""
    return [Span(**entry) for entry in json.loads(value)]


def _span(entry: object, what: str, column: str, length: int) -> Span:
    if not isinstance(entry, Mapping):
        raise BadValueError(f"{what} is not an object", REMEDY)
    for key in Span._fields:
        if key not in entry:
            raise BadValueError(f"{what} has no '{key}'", REMEDY)
        if isinstance(entry, Repeating) and key in entry.repeated:
            raise BadValueError(f"{what} has the key '{key}' more than once", REMEDY)
    start, end = _place(entry["start"], "start", what), _place(entry["end"], "end", what)
    if start >= end:
        raise BadValueError(f"{what} ends where it starts, or before", REMEDY)
    if start < 0 or end > length:
        raise BadValueError(f"{what} is not within the text", REMEDY)
    if not isinstance(entry["label"], str) or not entry["label"].strip():
        raise BadValueError(f"{what} has a label that is no text, or an empty one", REMEDY)
    return Span(start, end, text_value(entry["label"], column))


def _place(value: object, key: str, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadValueError(f"{what}: '{key}' is not a whole number", REMEDY)
    return value
