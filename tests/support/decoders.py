"""Small models that answer, with a random adapter in two layers and in float64."""

from __future__ import annotations

from pathlib import Path

from support.one_by_one import trained_somehow
from support.tasks import load_model

from fedllm.config import RunConfig, parse
from fedllm.models.shared import SharedModel


def loaded(folder: Path, kind: str) -> SharedModel:
    """Load a checkpoint for instruction tuning; ``kind`` is the seed of the adapter."""
    values = {
        "name": "tiny",
        "task": "instruction",
        "model": {"path": str(folder), "max_length": 16},
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2, "last_layers": 2},
    }
    return trained_somehow(load_model(parse(RunConfig, values, "test")), kind)
