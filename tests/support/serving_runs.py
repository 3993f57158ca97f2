"""Folders of runs as they end, with adapters that answer somehow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.run_folder import summary
from support.tasks import load_model

from fedllm.config import RunConfig, parse, to_toml
from fedllm.config.task import trains_a_head
from fedllm.randomness import RandomStream

LABELS = ("one", "two", "three")


@pytest.fixture
def released(tiny_checkpoint, tmp_path) -> Callable[..., Path]:
    """Make the folder of a finished run; sections change its configuration."""

    def make(
        kind: str = "bert", task: str = "classification", name: str = "run", **sections: Any
    ) -> Path:
        values = {
            "name": name,
            "task": task,
            "data": {"train": "unused.jsonl"},
            "lora": {"rank": 2, "last_layers": 2},
            **sections,
        }
        values["model"] = {"path": str(tiny_checkpoint(kind)), "max_length": 16} | sections.get(
            "model", {}
        )
        config = parse(RunConfig, values, "test")
        model = load_model(config, LABELS if trains_a_head(task) else ())
        change = RandomStream.seeded(3, kind, task, name).normal(model.manifest.length)
        model.set_adapter(model.adapter() + 0.5 * change)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.toml").write_text(to_toml(config))
        told = summary(run=name, task=task)
        (folder / "summary.json").write_text(json.dumps(told))
        model.save_adapter(folder / "adapter")
        return folder

    return make
