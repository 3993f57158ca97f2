"""A run's configuration from a file, from values, or from both."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig, parse, read_toml
from fedllm.config.locations import absolute_locations
from fedllm.errors import ConfigError

_WHERE = "the configuration"


def configure(file: str | PathLike[str] | None = None, /, **changes: Any) -> RunConfig:
    """Return what a run asks for.

    ``configure("run.toml", privacy={"epsilon": 3.0})`` changes a file's keys, as ``--set`` does;
    ``configure(name="ward", task="classification", model={...}, data={...})`` needs no file. What
    nobody says, the recipe for the task fills in.

    Parameters
    ----------
    file : path, optional
        A ``run.toml``. Relative paths, also those of ``changes``, count from its folder; without a
        file they count from the working directory.
    **changes
        Values of keys, and tables of sections; ``None`` removes a key, so that its default holds.
        All keys stand in ``docs/configuration.md``.

    Raises
    ------
    ConfigError
        Names the key that is wrong, and the nearest right one.
    """
    path = None if file is None else Path(file)
    values = {} if path is None else read_toml(path)
    for key, change in changes.items():
        _change(values, key, change)
    folder = Path.cwd() if path is None else path.absolute().parent
    return parse(RunConfig, absolute_locations(values, folder), str(path or _WHERE))


def config_of(given: RunConfig | str | PathLike[str]) -> RunConfig:
    """Return a configuration that was given as one, or as its file."""
    return given if isinstance(given, RunConfig) else configure(given)


def _change(values: dict[str, Any], key: str, change: Any) -> None:
    if not isinstance(change, Mapping):
        _set(values, key, change)
        return
    section = values.setdefault(key, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{key} is a value, and a table was given for it", "give a value")
    for name, inner in change.items():
        _change(section, str(name), inner)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        values.pop(key, None)
    else:
        values[key] = _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    # Numbers of numpy, as a search over settings gives them.
    item = getattr(value, "item", None)
    return item() if callable(item) else value
