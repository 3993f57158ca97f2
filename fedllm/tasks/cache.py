"""One shared model for each process, however many sites and rounds it serves."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fedllm.config import RunConfig
from fedllm.models.checkpoints import checkpoint_folder, state
from fedllm.models.shared import SharedModel
from fedllm.tasks.registry import task_of


class ModelCache:
    """Keeps the last shared model; another configuration, or other files, replace it.

    A base model is gigabytes and takes seconds to load. Sites that share a process take
    turns with it: each sets the adapter before it trains.
    """

    def __init__(self) -> None:
        self._key: dict[str, Any] = {}
        self._model: SharedModel | None = None

    def get(self, config: RunConfig, labels: tuple[str, ...]) -> SharedModel:
        """Return the model of a run, loading it only if it is not the one in memory."""
        key = {
            "model": config.model.model_dump(mode="json", exclude={"start"}),
            "lora": config.lora.model_dump(mode="json"),
            "task": config.task,
            "learned": config.preference.model_dump(mode="json"),
            "refers_to_start": config.refers_to_start,
            "seed": config.seed,
            "labels": labels,
            "device": config.engine.device,
            "files": state(checkpoint_folder(config.model.path)),
        }
        if self._model is None or key != self._key:
            self._model = None
            self._model = task_of(config).load_model(config, labels)
            self._key = key
        return self._model


@lru_cache(maxsize=1)
def process_models() -> ModelCache:
    """Return this process's only `ModelCache`: Flower hands handlers no state of their own."""
    return ModelCache()
