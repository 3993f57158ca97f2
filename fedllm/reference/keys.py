"""Every key of a kind of file: what it may be, its default, an example and what it means.

Meanings come from the docstrings' lists of attributes, which are their one source; the rest from
the fields themselves, and examples of keys without a default from `fedllm.reference.examples`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedllm.config import RunConfig
from fedllm.config.recipes import FILLED
from fedllm.config.wording import allowed
from fedllm.reference.examples import EXAMPLES
from fedllm.reference.kinds import FileKind


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a file.

    Attributes
    ----------
    kind : str
        Of which kind of file.
    section, name : str
        Its section, empty before any, and its own name.
    required : bool
        Whether a file must have it.
    default : str
        As TOML writes it; empty where leaving the key out is the default.
    by_recipe : bool
        Whether the recipe fills it where it is left out.
    may_be : str
        What it may hold, in words.
    example : str
        A value, as TOML writes it: the default, where there is one.
    meaning : str
        In the words of the docstring.
    """

    kind: str
    section: str
    name: str
    required: bool
    default: str
    by_recipe: bool
    may_be: str
    example: str
    meaning: str

    @property
    def path(self) -> str:
        """The key with its section, as ``--set`` takes it."""
        return f"{self.section}.{self.name}" if self.section else self.name


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a field holds, if it holds one."""
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            return kind
    return None


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstring says of each of a section's keys."""
    _, _, listed = (model.__doc__ or "").partition("----------\n")
    entries = re.split(r"^ {4}(?=\S)", listed, flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for entry in entries:
        names, _, words = entry.partition("\n")
        for name in names.partition(" : ")[0].split(", "):
            found[name] = " ".join(words.split()).replace("``", "`")
    return found


def introduction(model: type[BaseModel]) -> str:
    """Return what a section's docstring says before it lists keys."""
    words = (model.__doc__ or "").partition("    Attributes\n")[0].partition("; see `")[0]
    return " ".join(words.split()).rstrip(".").replace("``", "`") + "."


@lru_cache(maxsize=16)
def keys_of(kind: FileKind) -> tuple[Key, ...]:
    """Return every key of a kind of file, in the order of the classes."""
    found = list(_of_section(kind, kind.model, ""))
    for name, field in kind.model.model_fields.items():
        if (section := section_of(field)) is not None:
            found += _of_section(kind, section, name)
    return tuple(found)


def _of_section(kind: FileKind, model: type[BaseModel], section: str) -> Iterator[Key]:
    said = meanings(model)
    for name, field in model.model_fields.items():
        if section_of(field) is not None:
            continue
        words = allowed(kind.model, [section, name] if section else [name])
        default = "" if field.is_required() else as_toml(plain_default(field))
        example = EXAMPLES.get(f"{model.__name__}.{name}")
        yield Key(
            kind=kind.name,
            section=section,
            name=name,
            required=field.is_required(),
            default=default,
            by_recipe=kind.model is RunConfig and f"{section}.{name}" in FILLED,
            may_be=re.sub(r"'(\w+)'", r'"\1"', words),
            example=default if example is None else as_toml(example),
            meaning=said.get(name, ""),
        )


def plain_default(field: FieldInfo) -> Any:
    """Return a field's default as plain values; None where there is none."""
    value = field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


def as_toml(value: Any) -> str:
    """Write a plain value as TOML does on one line; None is no text."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(one) for one in value) + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {as_toml(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, float):
        return str(value)
    # DEL may stand in JSON, and not in TOML.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
