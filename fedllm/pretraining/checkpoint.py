"""Checkpoints of a pretraining run: whole or not there, and checked when read."""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from fedllm.errors import CheckpointError
from fedllm.files import atomic_directory, write_json

KEEP = 2
_NAME = re.compile(r"step-(\d{8})")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``folder/step-<step>`` and remove all but the newest `KEEP`.

    Raises
    ------
    FedllmError
        If the disk is full; earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    with atomic_directory(path) as temporary:
        torch.save(state, temporary / "state.pt")
        write_json(temporary / "checkpoint.json", {"step": step, "sha256": _digest(temporary)})
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint, or None if the run has none yet.

    A damaged one is passed over for the one before it.

    Raises
    ------
    CheckpointError
        If there are checkpoints but none is whole.
    """
    paths = _checkpoints(folder)
    for path in reversed(paths):
        state = _load(path)
        if state is not None:
            return state
    if paths:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole", "delete the run folder and start again"
        )
    return None


def _load(path: Path) -> dict[str, Any] | None:
    import json

    try:
        expected = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))["sha256"]
        if _digest(path) != expected:
            return None
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) else None


def _digest(path: Path) -> str:
    with (path / "state.pt").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name))
