"""Configurations from TOML and to it."""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from fedllm.config.section import Section
from fedllm.errors import ConfigError

DECIMAL_POINT = "numbers have a decimal point and no comma (8.0)"
_DECIMAL_COMMA = re.compile(r"[^=#]*=\s*[-+]?\d+,\d+(e[-+]?\d+)?\s*(#.*)?", re.IGNORECASE)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If it is missing, unreadable or not TOML.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", "check the path") from None
    except IsADirectoryError:
        inside = sorted(map(str, path.glob("*.toml")))[:5]
        raise ConfigError(
            f"{path} is a folder, not a TOML file",
            f"give the file: {' or '.join(inside)}" if inside else "check the path",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from None
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise ConfigError(
            f"{path} line {line}: the file is {'UTF-16' if utf16 else 'not UTF-8'}",
            "save it as UTF-8",
        ) from None
    return parse_toml(text, str(path))


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """Read TOML from a text; ``origin`` names it in errors.

    Raises
    ------
    ConfigError
        If it is not TOML; holds no value of the text, which may be a password.
    """
    try:
        values = tomllib.loads(text)
        # A hexadecimal number has no limit of digits when it is read, but one when it is shown.
        repr(values)
    except tomllib.TOMLDecodeError as error:
        remedy = "check that line"
        if _has_decimal_comma(text, str(error)):
            remedy += f": {DECIMAL_POINT}"
        raise ConfigError(f"{origin} is not valid TOML: {error}", remedy) from None
    except (ValueError, RecursionError):
        raise ConfigError(
            f"{origin} is not valid TOML: a number is too long, or it is nested too deep",
            "check its longest lines",
        ) from None
    return values


def _has_decimal_comma(text: str, error: str) -> bool:
    """Tell whether the line that an error names sets a key to a number with a decimal comma."""
    place = re.search(r"at line (\d+)", error)
    # At the end of the document, the last line is meant.
    line = text.split("\n")[int(place[1]) - 1 if place else -1]
    return _DECIMAL_COMMA.fullmatch(line.rstrip("\r")) is not None


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
