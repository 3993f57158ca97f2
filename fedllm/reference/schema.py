"""JSON Schemas (draft 2020-12) of every kind of file, for editors that know them.

They stand in ``schemas/`` beside this file, written by ``make reference``. A file that begins with
``#:schema`` and the place of one is completed and checked by Taplo and whatever is built on it.
They are as strict as a schema can be; what hangs on several keys only fedllm checks.
"""

from __future__ import annotations

import json
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from fedllm.reference.keys import Key, introduction, keys_of, section_of
from fedllm.reference.kinds import FileKind

FOLDER = Path(__file__).with_name("schemas")
DRAFT = "https://json-schema.org/draft/2020-12/schema"
# Pydantic names every key's title after the key, and adds descriptions that end in lists.
_NOISE = ("title", "description", "default")


class _Plain(GenerateJsonSchema):
    """Leaves out titles; ignores defaults that no schema can hold."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012


def schema_of(kind: FileKind) -> dict[str, Any]:
    """Return the schema of a kind of file: plain values, keys in the order of the classes."""
    whole = kind.model.model_json_schema(schema_generator=_Plain)
    definitions = whole.pop("$defs", {})
    keys = {key.path: key for key in keys_of(kind)}
    found: dict[str, Any] = {
        "$schema": DRAFT,
        "title": f"fedllm: {kind.words}",
        "description": introduction(kind.model),
        **_section(kind.model, "", whole, keys),
    }
    for name, field in kind.model.model_fields.items():
        section = section_of(field)
        if section is not None:
            inner = _section(section, name, definitions[section.__name__], keys)
            found["properties"][name] = {"description": introduction(section), **inner}
    return found


def _section(
    model: type[BaseModel], section: str, made: JsonSchemaValue, keys: dict[str, Key]
) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, schema in made["properties"].items():
        path = f"{section}.{name}" if section else name
        if path in keys:
            default = schema.get("default")
            properties[name] = _described(_without_null(schema), keys[path], default)
        else:
            properties[name] = {}
    found = {"type": "object", "additionalProperties": False, "properties": properties}
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    return found | ({"required": needed} if needed else {})


def _described(schema: JsonSchemaValue, key: Key, default: Any) -> dict[str, Any]:
    plain = {name: value for name, value in schema.items() if name not in _NOISE}
    words = key.meaning
    if key.by_recipe:
        words += " Where the file does not say it, the recipe may: docs/recipes.md."
    plain["description"] = words
    if default is not None and not key.by_recipe:
        plain["default"] = default
    if key.example != key.default:
        plain["examples"] = [tomllib.loads(f"x = {key.example}")["x"]]
    return plain


def _without_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Take out null, which TOML does not have."""
    choices = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if len(choices) == 1:
        rest = {name: value for name, value in schema.items() if name != "anyOf"}
        return {**choices[0], **rest}
    return schema | {"anyOf": choices} if choices else schema


def schema_file(kind: FileKind) -> Path:
    """Return where the package has the schema of a kind."""
    return FOLDER / f"{kind.name}.schema.json"


def schema_text(kind: FileKind) -> str:
    """Return a schema as its file has it."""
    return json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n"


@lru_cache
def installed_schema(kind: FileKind) -> str:
    """Return the text of the schema that the package has."""
    return schema_file(kind).read_text(encoding="utf-8")
