"""What is wrong with a request's body, in plain words that quote nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedllm.serving.asked import FIELDS, NotServedError

_ANY_KIND = {"string_type": "a text", "list_type": "a list"}
_WORDS = {
    "missing": "is missing",
    "string_type": "is no text",
    "string_unicode": "is no valid Unicode",
    "string_too_long": "has more than {max_length} characters",
    "list_type": "is no list",
    "too_long": "has more than {max_length} entries",
    "bool_type": "is neither true nor false",
    "bool_parsing": "is neither true nor false",
    "int_type": "is no whole number",
    "int_parsing": "is no whole number",
    "int_parsing_size": "is too large a number",
    "int_from_float": "is no whole number",
    "float_type": "is no number",
    "float_parsing": "is no number",
    "finite_number": "is no finite number",
    "greater_than": "is not more than {gt}",
    "greater_than_equal": "is less than {ge}",
    "less_than": "is not less than {lt}",
    "less_than_equal": "is more than {le}",
    "literal_error": "is none of {expected}",
    "json_invalid": "is not valid JSON",
}
_EMPTY = ("string_too_short", "too_short")


def told_of(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return what to say of errors that pydantic found, and the field that they are of.

    Parameters
    ----------
    errors : sequence of mapping
        As ``ValidationError.errors()`` has them; of a field that may be of several kinds there is
        one for each kind.
    """
    if not errors:
        return "the body cannot be read", None
    first = _fields(errors[0])[:1]
    same = [error for error in errors if _fields(error)[:1] == first]
    # What was meant is the kind that fits furthest.
    found = min(same, key=lambda error: (error["type"] in _ANY_KIND, -len(_fields(error))))
    field = ".".join(_fields(found))
    kinds = {error["type"] for error in same if _fields(error) == _fields(found)}
    refused = found.get("ctx", {}).get("error")
    if isinstance(refused, NotServedError):
        name = ".".join([*_fields(found), refused.field]) if refused.field else None
        return f"{refused.field or 'a field of another name'} is not served", name
    if kinds == set(_ANY_KIND):
        return f"{field} is neither a text nor a list of texts", field
    return f"{field or 'the body'} {_words(found)}", field or None


def _fields(error: Mapping[str, Any]) -> list[str]:
    """Return where an error is, without pydantic's names of kinds and places in the text."""
    if error["type"] == "json_invalid":
        return []
    places = error["loc"][1:]
    return [str(part) for part in places if isinstance(part, int) or part in FIELDS]


def _words(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind in _EMPTY:
        return "is empty"
    if not _fields(error) and kind != "json_invalid":
        return "is no JSON object with Content-Type application/json"
    words = _WORDS.get(kind, "holds what is not served here")
    return words.format_map(error.get("ctx", {}))
