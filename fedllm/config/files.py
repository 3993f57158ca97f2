"""Configurations from files."""

from __future__ import annotations

from pathlib import Path

from fedllm.config.locations import absolute_locations
from fedllm.config.overrides import apply_overrides
from fedllm.config.parsing import parse
from fedllm.config.run import RunConfig
from fedllm.config.site_policy import SitePolicy
from fedllm.config.toml import read_toml


def load_run_config(
    path: Path, overrides: list[str] | None = None, sites: int | None = None
) -> RunConfig:
    """Read a run configuration; relative paths count from its folder.

    Parameters
    ----------
    path : Path
        The TOML file.
    overrides : list of str, optional
        ``section.key=value`` each.
    sites : int, optional
        How many there are, where that is known and the file does not say it.

    Raises
    ------
    ConfigError
        If the file or an override is wrong.
    """
    values = apply_overrides(read_toml(path), overrides or [])
    if sites is not None and isinstance(values.get("data"), dict):
        values["data"].setdefault("sites", max(2, sites))
    return parse(RunConfig, absolute_locations(values, path.parent), str(path))


def load_site_policy(path: Path) -> SitePolicy:
    """Read a site's policy; relative paths count from its folder.

    Raises
    ------
    ConfigError
        If the file is wrong.
    """
    return parse(SitePolicy, absolute_locations(read_toml(path), path.parent), str(path))


def with_absolute_locations(config: RunConfig) -> RunConfig:
    """Return ``config`` with paths that mean the same from every folder.

    Relative paths of a configuration that was not read from a file count from the working
    directory.
    """
    values = absolute_locations(config.model_dump(mode="json"), Path.cwd())
    return parse(RunConfig, values, config.name)
