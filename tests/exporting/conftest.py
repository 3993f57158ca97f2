"""Finished runs of tiny models, as their folders stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.hub_cache import hub
from support.run_folder import summary, write_run
from support.tiny_models import save_tiny

from fedllm.config import RunConfig, parse
from fedllm.config.task import trains_a_head
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of

if TYPE_CHECKING:
    from fedllm.models.shared import SharedModel

__all__ = ["hub"]

LABELS = ("card", 'a | "b" `c`', "三")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny random models by kind."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_tiny(kind, tmp_path_factory.mktemp("base") / kind)
        return made[kind]

    return make


@pytest.fixture
def finished(tmp_path: Path, tiny: Callable[[str], Path]) -> Callable[..., Path]:
    """Make a finished run's folder; its adapter and head have random values."""

    def make(
        kind: str = "bert",
        task: str = "classification",
        name: str = "run",
        trained: float = 0.3,
        base: Path | None = None,
        **sections: Any,
    ) -> Path:
        base = base or tiny(kind)
        values = {
            "name": "made-up",
            "task": task,
            "data": {"train": "postgresql://anna:secret@host/x"},
            "rounds": {"count": 5},
            "privacy": {"epsilon": 8.0, "noise": "local", "clipping_norm": 0.1},
            "training": {"sampling_rate": 0.0625},
            **{k: v for k, v in sections.items() if k not in ("model", "lora")},
            "model": {
                "path": str(base),
                "head_start": "zero",
                "feature_center": "zero",
                "max_length": 48,
                **sections.get("model", {}),
            },
            "lora": {"rank": 2, "last_layers": 2, **sections.get("lora", {})},
        }
        config = parse(RunConfig, values, "test")
        labels = LABELS if trains_a_head(config.task) else ()
        model: SharedModel = task_of(config).load_model(config, labels)
        drawn = RandomStream.seeded(3, kind, task).normal(model.manifest.length)
        model.set_adapter(trained * drawn)
        folder = tmp_path / name
        told = {"path": str(base), "fingerprint": model.files_fingerprint, "parameters": 4711}
        write_run(folder, config, summary(task=task, model=told))
        model.save_adapter(folder / "adapter")
        return folder

    return make
