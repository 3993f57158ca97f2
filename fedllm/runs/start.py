"""The adapter of an earlier run that a run starts from (``model.start``), found without torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig
from fedllm.errors import ConfigError, FedllmError
from fedllm.runs.checkpoints import RunState
from fedllm.runs.lineage import CHAIN, ancestors, link
from fedllm.runs.names import ADAPTER, RUN_TOML, SUMMARY
from fedllm.runs.record import read_config
from fedllm.runs.summary import read_summary

# Names a folder that was given to a command, and not by a key of a configuration.
GIVEN = "RUN"
_ABOUT = "shared_model.json"
# What decides what an adapter does; in the order in which they are counted.
_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "base_tensors.safetensors",
    "core.safetensors",
    "head.safetensors",
    _ABOUT,
)


@dataclass(frozen=True)
class StartedFrom:
    """An adapter to start from.

    Attributes
    ----------
    folder : Path
        As `SharedModel.save_adapter` wrote it.
    about : dict
        What is said of it ever after: ``adapter`` (SHA-256 of its files) and, where it lies in a
        run folder, ``run`` (name), ``run_id``, ``epsilon`` and ``delta`` (as that run spent them at
        most; None without privacy), and ``chain`` (that run, and all that it goes back to; see
        `fedllm.runs.lineage`).
    """

    folder: Path
    about: dict[str, Any] = field(default_factory=dict)


def find_start(location: str, named: str = "model.start") -> StartedFrom:
    """Find a released adapter: in the folder of a finished run, or its adapter's own.

    Parameters
    ----------
    named : str
        What named the place, for messages.

    Raises
    ------
    ConfigError
        If there is none; says what to give instead.
    """
    path = Path(location)
    if not path.is_dir():
        raise ConfigError(
            f"{named}: there is no folder {path}",
            "give the folder of a finished run"
            + (
                "" if named == GIVEN else "; paths in a run.toml and in --set count from its folder"
            ),
        )
    if (path / RUN_TOML).exists() and not (path / SUMMARY).exists():
        raise ConfigError(f"{named}: the run in {path} is not finished", "finish it with --resume")
    run = path if (path / SUMMARY).exists() else path.parent
    folder = path if (path / _ABOUT).exists() else path / ADAPTER
    if not (folder / _ABOUT).exists():
        raise ConfigError(
            f"{named}: {path} holds no adapter of fedllm (no {_ABOUT})",
            "give the folder of a finished run, or its folder 'adapter'"
            + (
                "; or, where a command takes them, of an export or a base model"
                if named == GIVEN
                else ""
            ),
        )
    of_run = _run(run, named) if folder.parent == run and (run / SUMMARY).exists() else {}
    return StartedFrom(folder, {"adapter": _fingerprint(folder), **of_run})


def is_released(location: Path) -> bool:
    """Tell whether a folder is a run's or an adapter's, and no base model's."""
    return (location / RUN_TOML).exists() or any(
        (folder / _ABOUT).exists() for folder in (location, location / ADAPTER)
    )


def require_model(location: Path) -> None:
    """Refuse a folder that holds no model at all, before anything is imported that loads one.

    Raises
    ------
    ConfigError
        If it is neither a finished run's, nor an adapter's, nor has a whole model.
    """
    if is_released(location) or not (location / "config.json").exists():
        find_start(str(location), GIVEN)


def starting_point(config: RunConfig, state: RunState | None) -> StartedFrom | None:
    """Return the adapter that a run begins with; None where it has begun, or begins untrained.

    Raises
    ------
    ConfigError
        See `find_start`.
    """
    if state is not None or config.model.start is None:
        return None
    return find_start(config.model.start)


def _fingerprint(folder: Path) -> str:
    found = hashlib.sha256()
    for name in _FILES:
        if (folder / name).exists():
            content = (folder / name).read_bytes()
            found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _run(folder: Path, named: str) -> dict[str, Any]:
    try:
        summary = read_summary(folder)
    except FedllmError as error:
        raise ConfigError(f"{named}: {error.message}", error.remedy) from None
    try:
        config = read_config(folder)
    except FedllmError:
        config = None
    told = link(summary.model_dump(), summary.privacy, config)
    before = [one.model_dump(mode="json") for one in ancestors(summary.started_from)]
    return {
        **{key: told[key] for key in ("run", "run_id", "epsilon", "delta")},
        CHAIN: [told, *before],
    }
