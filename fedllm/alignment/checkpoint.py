"""How far an alignment is, in one file that is exchanged as a whole after each step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor

from fedllm.alignment.evaluation import Measured
from fedllm.errors import ConfigError
from fedllm.files import write_bytes
from fedllm.models.contents import reading

_NAME, _LABEL = "alignment.safetensors", "fedllm.alignment.v1"


class Course(BaseModel):
    """All that an alignment goes on from, but for tensors.

    Attributes
    ----------
    run_id, started : str
        Its random identifier; when it was begun, UTC, ISO 8601.
    step : int
        Steps that are done.
    coefficient : float
        What a nat costs in the next one.
    mean, deviation : float
        Unit of rewards; see `fedllm.alignment.guards.Scale`.
    selection_before, test_before : Measured
        The starting model, on the prompts that are held out.
    best_step : int
        Of the model that is kept; 0: the starting model.
    best_verdict : float
        The judge's mean for it.
    waited : int
        Measurements since.
    ended : str
        Why training ended, in words; empty while it goes on.
    seconds : float
        Wall time so far.
    """

    model_config = ConfigDict(strict=True)

    run_id: str
    started: str
    step: int = 0
    coefficient: float
    mean: float
    deviation: float
    selection_before: Measured
    test_before: Measured
    best_step: int = 0
    best_verdict: float
    waited: int = 0
    ended: str = ""
    seconds: float = 0.0


def write_checkpoint(
    folder: Path, asked: Mapping[str, Any], course: Course, tensors: Mapping[str, Tensor]
) -> None:
    """Write how far an alignment is, durably.

    Parameters
    ----------
    asked : mapping
        What decides on the result, as JSON can say it.

    Raises
    ------
    StorageError
        If the disk is full; the earlier one is as it was.
    """
    told = {
        "label": _LABEL,
        "asked": json.dumps(asked, sort_keys=True),
        "course": course.model_dump_json(),
    }
    whole = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    write_bytes(folder / _NAME, format_safetensors(whole, told))


def has_checkpoint(folder: Path) -> bool:
    """Tell whether an alignment has begun."""
    return (folder / _NAME).exists()


def read_checkpoint(folder: Path, asked: Mapping[str, Any]) -> tuple[Course, dict[str, Tensor]]:
    """Read what `write_checkpoint` wrote.

    Raises
    ------
    ConfigError
        If it is of another alignment: names what differs.
    CheckpointError
        If it is damaged.
    """
    path = folder / _NAME
    with reading(f"{path} is damaged", "begin anew with another --out"):
        with safe_open(str(path), "pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if told.get("label") != _LABEL:
            raise ValueError("another label")
        before = json.loads(told["asked"])
        course = Course.model_validate_json(told["course"])
    now = json.loads(json.dumps(asked))
    differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if differing:
        raise ConfigError(
            f"{folder.parent} was begun with something else than is given now: "
            f"{', '.join(differing)}",
            "resume with the configuration and the models that it was begun with, or begin anew "
            "with another --out",
        )
    return course, tensors
