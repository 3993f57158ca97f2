"""Where data and models are: variables and relative paths."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fedllm.errors import ConfigError

_SQLITE = "sqlite:///"
_PLACES = (
    ("model", "path"),
    ("model", "start"),
    ("lora", "public_texts"),
    ("data", "train"),
    ("data", "test"),
)
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def resolve_location(text: str, folder: Path, key: str) -> str:
    """Return a data or model location with variables filled in and paths absolute.

    ``${NAME}`` and ``${NAME:-default}`` take environment variables, whose relative paths
    count from the working directory; other relative paths count from ``folder``, also that
    of ``sqlite:///relative``. Other URLs and ``package:`` locations are left alone.

    Raises
    ------
    ConfigError
        If a variable without a default is not set, or a character of code 0 stands in it.
    """

    def fill(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value:
            begins = text[: match.start()] in ("", _SQLITE)
            return str(Path(value).absolute()) if begins and "://" not in value else value
        if match[2] is None:
            raise ConfigError(f"{key} needs the environment variable {match[1]}", f"set {match[1]}")
        return match[2]

    filled = _VARIABLE.sub(fill, text)
    if "\0" in filled:
        raise ConfigError(f"{key} holds a character of code 0", "take it out")
    if filled.startswith(_SQLITE) and filled.removeprefix(_SQLITE) not in ("", ":memory:"):
        path, mark, options = filled.removeprefix(_SQLITE).partition("?")
        return f"{_SQLITE}{_absolute(path, folder)}{mark}{options}"
    if "://" in filled or filled.startswith("package:"):
        return filled
    return _absolute(filled, folder)


def _absolute(path: str, folder: Path) -> str:
    try:
        return os.path.normpath(folder.absolute() / Path(path).expanduser())
    except RuntimeError:
        # A name after ~ that is no user's.
        return os.path.normpath(folder.absolute() / path)


def absolute_locations(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a configuration's plain values with each location as `resolve_location` gives it.

    Raises
    ------
    ConfigError
        If a variable without a default is not set.
    """
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for section, key in _PLACES:
        table = result.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = resolve_location(table[key], folder, f"{section}.{key}")
    return result
