"""Values to a configuration, or an error that names the key and the nearest valid one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedllm.config.kinds import other_kind
from fedllm.config.section import Section
from fedllm.config.toml import DECIMAL_POINT
from fedllm.config.wording import allowed
from fedllm.errors import ConfigError

_SHOWN_LETTERS = 200
# What stands before the last '@' of a URL: user and password.
_PASSWORD = re.compile(r"(://).*@", re.DOTALL)
# What documents call it, or another tool.
_OTHER_NAMES = {
    "shared": "distributed",
    "fp32": "float32",
    "bf16": "bfloat16",
    "user": "person",
    "noniid": "dirichlet",
    "lora-xs": "core",
    "fed-sb": "core",
    "ffa-lora": "ffa",
}
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+(e[-+]?\d+)?\s*", re.IGNORECASE)

Model = TypeVar("Model", bound=Section)


def parse(model: type[Model], values: dict[str, Any], origin: str) -> Model:
    """Build ``model`` from plain values.

    Raises
    ------
    ConfigError
        Names each wrong key, what it was given, and what it may be; the nearest valid key; or
        which kind of configuration it is instead.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(error, model, values, origin) from None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes
    ----------
    key : str
        Where, as ``section.key``; empty where it concerns no single key.
    words : str
        What, after the key where there is one.
    remedy : str
        What to do; may be empty.
    """

    key: str
    words: str
    remedy: str = ""


def problems_of(model: type[BaseModel], values: dict[str, Any]) -> list[Problem]:
    """Return all that is wrong with plain values; what hangs on several keys is seen last.

    Raises
    ------
    ConfigError
        If a value can only be looked up in vain, such as a package that is not there.
    """
    try:
        model.model_validate(values)
    except ValidationError as error:
        return [_problem(item, model) for item in error.errors()]
    return []


def _explain(
    error: ValidationError, model: type[BaseModel], values: dict[str, Any], origin: str
) -> ConfigError:
    if (kind := other_kind(values, model.__name__)) is not None:
        return ConfigError(f"{origin} is {kind.words}, which is not read here", kind.remedy)
    found = [_problem(item, model) for item in error.errors()]
    remedies = [(one.key, one.remedy) for one in found if one.remedy]
    # A value that fits none of several types is wrong once for each.
    several = len(remedies) > 1
    told = [
        f"{key}: {words}" if several and not words.startswith("add ") else words
        for key, words in remedies
    ]
    lines = dict.fromkeys(f"{origin}: {one.words}" for one in found)
    return ConfigError("\n".join(lines), "; ".join(told))


def _problem(item: Mapping[str, Any], model: type[BaseModel]) -> Problem:
    path = _path(item["loc"], model)
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        return Problem(key, f"unknown key '{key}'", _nearest(key, model))
    if item["type"] == "missing":
        words = allowed(model, path)
        return Problem(
            key, f"key '{key}' is missing", f"add '{key}'{f', {words}' if words else ''}"
        )
    if item["type"] == "value_error":
        reason = item["msg"].removeprefix("Value error, ")
        value = "" if isinstance(item["input"], dict | BaseModel) else _shown(item["input"])
        # What concerns two keys names both.
        where = f"{key}{value}: " if key and not reason.startswith(f"{key}.") else ""
        return Problem(key, f"{where}{reason}")
    finite = "finite, " if item["type"] == "finite_number" else ""
    words = finite + allowed(model, path) or "something else"
    if "number" in words and _DECIMAL_COMMA.fullmatch(str(item["input"])):
        words += f"; {DECIMAL_POINT}"
    near = _nearest_value(item) if item["type"] == "literal_error" else ""
    return Problem(
        key,
        f"{key}{_shown(item['input'])}: must be {words}",
        f"did you mean {near!r}?" if near else "",
    )


def _path(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys that a place of pydantic's goes through, without types and positions."""
    keys: list[str] = []
    section: type[BaseModel] | None = model
    for part in map(str, location):
        if section is None:
            break
        keys.append(part)
        field = section.model_fields.get(part)
        section = _section_of(field.annotation) if field is not None else None
    return keys


def without_passwords(value: Any) -> Any:
    """Return plain values with the user and the password of every URL left out."""
    if isinstance(value, list | tuple):
        return [without_passwords(inner) for inner in value]
    if isinstance(value, dict):
        return {key: without_passwords(inner) for key, inner in value.items()}
    return _PASSWORD.sub(r"\1***@", value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    text = repr(without_passwords(value))
    return f" = {text if len(text) <= _SHOWN_LETTERS else text[:_SHOWN_LETTERS] + ' ...'}"


def _nearest(key: str, model: type[BaseModel]) -> str:
    section, _, leaf = key.rpartition(".")
    known = _known_keys(model)
    beside = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
    elsewhere = [k for k in known if k.rpartition(".")[2] == leaf]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    close = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{section + '.' if section else ''}{close[0]}'?"
    return f"known keys here: {', '.join(beside)}"


def _nearest_value(item: Mapping[str, Any]) -> str:
    """Return the allowed word that a wrong one looks like, or that is called so elsewhere too."""
    known = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
    given = str(item["input"]).lower()
    other = _OTHER_NAMES.get(given, "")
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return other if other in known else close[0] if close else ""


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        inner = _section_of(field.annotation)
        keys.append(prefix + name)
        if inner is not None:
            keys += _known_keys(inner, f"{prefix}{name}.")
    return keys


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
