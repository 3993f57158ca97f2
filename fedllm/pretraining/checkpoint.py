"""Checkpoints of a pretraining run: whole or not there, and checked when read.

Tensors are written by `torch.distributed.checkpoint`: each process writes the parts it
holds, and any number of processes reads them back in the division it has.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor

from fedllm.canonical import read_object
from fedllm.errors import CheckpointError
from fedllm.files import atomic_directory, write_json
from fedllm.pretraining.parallel import World

KEEP = 2
_NAME = re.compile(r"step-(\d{8})")
_DESCRIPTION = "checkpoint.json"


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], course: dict[str, Any], world: World
) -> Path:
    """Write ``folder/step-<step>`` and remove all but the newest `KEEP`.

    Called by all processes, which see the same file system.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Parameters and optimiser states; DTensors where they are sharded.
    course : dict
        Everything else, as JSON.

    Raises
    ------
    FedllmError
        If the disk is full; earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    place: AbstractContextManager[Path]
    place = atomic_directory(path) if world.first else nullcontext(path)
    with place as own:
        temporary = world.share(own)
        with _alone_is_fine():
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(temporary))
        if world.first:
            description = {"step": step, "course": course, "sha256": _digests(temporary)}
            write_json(temporary / _DESCRIPTION, description)
    if world.first:
        for old in _checkpoints(folder)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    world.wait()
    return path


def newest_checkpoint(folder: Path, world: World) -> tuple[Path, dict[str, Any]] | None:
    """Return folder and course of the newest checkpoint, or None if there is none yet.

    A damaged one is passed over for the one before it. Called by all processes.

    Raises
    ------
    CheckpointError
        If there are checkpoints but none is whole.
    """
    found = _newest_whole(folder) if world.first else None
    found = world.share(found)
    if found is None and _checkpoints(folder):
        raise CheckpointError(
            f"no checkpoint in {folder} is whole", "delete the run folder and start again"
        )
    return found


def load_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Read a checkpoint into ``tensors`` in place, whatever number of processes wrote it.

    Raises
    ------
    CheckpointError
        If it lacks one of them or a shape differs.
    """
    try:
        with _alone_is_fine():
            dcp.load(tensors, storage_reader=dcp.FileSystemReader(path))
    except (dcp.CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} does not fit this run's model: {str(error).splitlines()[0]}",
            "resume with the configuration that the run was started with",
        ) from None


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _newest_whole(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    for path in reversed(_checkpoints(folder)):
        try:
            description = read_object((path / _DESCRIPTION).read_bytes())
            if _digests(path) == description["sha256"]:
                return path, description["course"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _digests(path: Path) -> dict[str, str]:
    digests = {}
    for file in sorted(path.iterdir()):
        if file.name != _DESCRIPTION:
            with file.open("rb") as stream:
                digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name))
