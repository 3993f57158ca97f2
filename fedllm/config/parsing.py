"""Values to a configuration, or an error that names the key and the nearest valid one."""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedllm.config.section import Section
from fedllm.errors import ConfigError

_SHOWN_LETTERS = 200
# What stands before the last '@' of a URL: user and password.
_PASSWORD = re.compile(r"(://).*@", re.DOTALL)

Model = TypeVar("Model", bound=Section)


def parse(model: type[Model], values: dict[str, Any], origin: str) -> Model:
    """Build ``model`` from plain values.

    Raises
    ------
    ConfigError
        Names each wrong key, the reason and the nearest valid key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(error, model, origin) from None


def _explain(error: ValidationError, model: type[BaseModel], origin: str) -> ConfigError:
    lines, remedies = [], []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"] if part not in ("literal['auto']",))
        if item["type"] == "extra_forbidden":
            lines.append(f"{origin}: unknown key '{key}'")
            remedies.append(_nearest(key, model))
        elif item["type"] == "missing":
            lines.append(f"{origin}: key '{key}' is missing")
            remedies.append(f"add '{key}'")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], dict | BaseModel) else _shown(item["input"])
            lines.append(f"{origin}: {key}{value}: {reason}" if key else f"{origin}: {reason}")
    return ConfigError("\n".join(lines), "; ".join(dict.fromkeys(remedies)))


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
    close = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{section + '.' if section else ''}{close[0]}'?"
    return f"known keys here: {', '.join(beside)}"


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
