"""What a key of a configuration may hold, in words."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import BaseModel

# What patterns of names ask for; a regular expression is no remedy.
_PATTERNS = {
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "1 to 64 letters, digits, '.', '_' or '-', the first of "
    "them a letter or digit, without accents",
    "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$": "1 to 40 lower-case letters, digits or inner hyphens",
    "^[a-z0-9][a-z0-9._-]{0,63}$": "1 to 64 lower-case letters, digits, '.', '_' or '-', the first "
    "of them a letter or digit, without accents and spaces",
    "^(auto|cpu|cuda(:[0-9]{1,3})?)$": "'auto', 'cpu', 'cuda' or 'cuda:N', N from 0",
    "^[0-9a-f]{64}$": "a fingerprint (64 hex digits, letters in lower case)",
}
_SIMPLE = {"boolean": "true or false", "array": "a list", "object": "a section", "string": "a text"}


def allowed(model: type[BaseModel], path: list[str]) -> str:
    """Say what the key at ``path`` may hold; nothing where that is not known."""
    whole = _schema(model)
    schema: dict[str, Any] = whole
    for part in path:
        schema = _resolved(schema, whole).get("properties", {}).get(part, {})
    return _words(schema, whole)


@lru_cache(maxsize=32)
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    for one in (schema, *schema.get("anyOf", ()), *schema.get("allOf", ())):
        if "$ref" in one:
            name = str(one["$ref"]).rpartition("/")[2]
            return dict(whole["$defs"][name])
    return schema


def _words(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    schema = _resolved(schema, whole)
    if "anyOf" in schema:
        found = [_words(one, whole) for one in schema["anyOf"] if one.get("type") != "null"]
        return ", or ".join(words for words in found if words)
    if "enum" in schema or "const" in schema:
        *first, last = map(repr, schema.get("enum") or [schema["const"]])
        return f"{', '.join(first)} or {last}" if first else last
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _limits(schema)
    if "pattern" in schema:
        return _PATTERNS[schema["pattern"]]
    if kind == "array":
        # A tuple of any length.
        inner = _words(schema.get("items", {}), whole)
        return f"a list, each entry {inner}" if inner else "a list"
    return _SIMPLE.get(str(kind), "")


def _limits(schema: dict[str, Any]) -> str:
    names = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    parts = [f"{words} {schema[key]}" for key, words in names.items() if key in schema]
    return f", {' and '.join(parts)}" if parts else ""
