"""Configurations from TOML and to it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from fedllm.config.section import Section
from fedllm.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If it is missing, unreadable or not TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML from a file or a peer.

    Raises
    ------
    ValueError
        If it is not TOML, nests without end, or holds a number with thousands of digits.
    """
    try:
        values = tomllib.loads(text)
        # A hexadecimal number has no limit of digits when it is read, but one when it is shown.
        repr(values)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return values


def to_toml(section: Section) -> str:
    """Write a configuration as TOML that reads back to the same object."""
    values = section.model_dump(mode="json", exclude_none=True)
    lines = [
        f"{key} = {_toml_value(value)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    # A JSON string, number, boolean or list of strings is a valid TOML value; DEL is not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
