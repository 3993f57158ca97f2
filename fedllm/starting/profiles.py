"""What the values of a column are: texts, names, numbers, dates, identifiers, or lists."""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedllm.data.values import Unreadable

Holds = Literal[
    "nothing",
    "text",
    "name",
    "identifier",
    "whole number",
    "number",
    "date",
    "boolean",
    "spans",
    "texts",
    "numbers",
    "something else",
]
# A column is of a kind if so much of it is; the rest may be slips.
_MOST = 0.95
# Of free text: words of one, and how many of them come once.
_WORDS, _DIFFERENT = 3.0, 0.5
_WHOLE = re.compile(r"[+-]?\d{1,30}")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ]\d{1,2}:\d{2}.*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})"
    r"([T ]\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(:\d{2})?|\d{4}年\d{1,2}月\d{1,2}日"
)
# Letters and digits without space, and digits among them: A-1042, 3f0c..., x@y.org.
_WIDE_KEY = 4
_IDENTIFIER = re.compile(r"(?=\S*\d)[\w@.+:/#-]{3,64}")


@dataclass(frozen=True, slots=True)
class Profile:
    """A column, in counts.

    Attributes
    ----------
    name : str
        Of the column.
    holds : str
        What its values are.
    filled, empty : int
        Rows with a value, and without one.
    distinct : int
        Different values.
    words : float
        Of a value, on average; of Chinese and Japanese, half of the characters.
    tokens : int
        About so many tokens has a long value: 99 of 100 are no longer.
    """

    name: str
    holds: Holds
    filled: int
    empty: int
    distinct: int
    words: float
    tokens: int

    @property
    def repeats(self) -> float:
        """How often a value is there, on average."""
        return self.filled / max(1, self.distinct)


def profiles_of(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> dict[str, Profile]:
    """Return what each column holds, by name."""
    return {name: profile(name, [row.get(name) for row in rows]) for name in columns}


def profile(name: str, values: Sequence[object]) -> Profile:
    """Return what one column holds."""
    there = [value for value in values if not is_empty(value)]
    kinds = Counter(_kind(value) for value in there)
    shown = [_form(value) for value in there]
    words = sum(map(_words, shown)) / max(1, len(shown))
    distinct = len(set(shown))
    lengths = sorted(map(_tokens, shown))
    return Profile(
        name=name,
        holds=_holds(kinds, words, distinct),
        filled=len(there),
        empty=len(values) - len(there),
        distinct=distinct,
        words=words,
        tokens=lengths[int(0.99 * (len(lengths) - 1))] if lengths else 0,
    )


def is_empty(value: object) -> bool:
    """Tell whether a row has nothing in a field."""
    return value is None or (isinstance(value, str) and not value.strip())


def _holds(kinds: Counter[Holds], words: float, distinct: int) -> Holds:
    count = sum(kinds.values())
    if not count:
        return "nothing"
    numeric = kinds["whole number"] + kinds["number"]
    if numeric >= _MOST * count:
        return "whole number" if kinds["whole number"] >= _MOST * count else "number"
    kind, most = kinds.most_common(1)[0]
    if most >= _MOST * count and kind not in ("name", "text"):
        return kind
    textual = count - sum(kinds[other] for other in ("spans", "texts", "numbers"))
    if textual < _MOST * count or kinds["something else"]:
        return "something else"
    if words >= _WORDS and distinct >= _DIFFERENT * count:
        return "text"
    return "name"


def _kind(value: object) -> Holds:
    if isinstance(value, str):
        return _kind_of_text(value.strip())
    if isinstance(value, list):
        return _kind_of_list(value)
    found = (kind for types, kind in _TYPES if isinstance(value, types))
    return next(found, "something else")


# The first that fits: a truth value is a whole number too.
_TYPES: tuple[tuple[type | tuple[type, ...], Holds], ...] = (
    (bool, "boolean"),
    (int, "whole number"),
    (float, "number"),
    ((datetime.date, datetime.time), "date"),
    (uuid.UUID, "identifier"),
)


def _kind_of_text(text: str) -> Holds:
    if text.startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return "name"
        return _kind_of_list(found) if isinstance(found, list) else "name"
    for pattern, kind in _PATTERNS:
        if pattern.fullmatch(text):
            # A sentence without spaces may have a number in it.
            return "name" if kind == "identifier" and _wide(text) > _WIDE_KEY else kind
    return "name"


_PATTERNS: tuple[tuple[re.Pattern[str], Holds], ...] = (
    (_WHOLE, "whole number"),
    (_DATE, "date"),
    (_NUMBER, "number"),
    (_IDENTIFIER, "identifier"),
)


def _kind_of_list(values: Iterable[object]) -> Holds:
    found = list(values)
    if all(isinstance(one, dict) and {"start", "end", "label"} <= set(one) for one in found):
        return "spans"
    if all(isinstance(one, str) for one in found):
        return "texts"
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in found):
        return "numbers"
    return "something else"


def listed(value: object) -> list[Any]:
    """Return a list, which a field may also hold as JSON; an empty one for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return value if isinstance(value, list) else []


def _form(value: object) -> str:
    if isinstance(value, Unreadable):
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _wide(text: str) -> int:
    if text.isascii():
        return 0
    return sum(unicodedata.east_asian_width(character) in "WF" for character in text)


def _words(text: str) -> float:
    return len(text.split()) + _wide(text) / 2


def _tokens(text: str) -> int:
    wide = _wide(text)
    return 2 + wide + (len(text) - wide + 3) // 4
