"""One shared model for each process, however many sites and rounds it serves."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fedllm.config import RunConfig
from fedllm.errors import FedllmError
from fedllm.models.checkpoints import checkpoint_folder, folder_of, state
from fedllm.models.contents import FilesState
from fedllm.models.shared import SharedModel
from fedllm.tasks.registry import task_of


class ModelCache:
    """Keeps the last shared model; another configuration, or other files, replace it.

    A base model is gigabytes and takes seconds to load. Sites that share a process take
    turns with it: each sets the adapter before it trains.
    """

    def __init__(self) -> None:
        self._asked: tuple[RunConfig, tuple[str, ...]] | None = None
        self._key: dict[str, Any] = {}
        self._files: FilesState | None = None
        self._model: SharedModel | None = None

    def get(self, config: RunConfig, labels: tuple[str, ...]) -> SharedModel:
        """Return the model of a run, loading it only if it is not the one in memory."""
        if self._model is None or not self._is_of(config, labels) or not self._is_there(config):
            self._asked, self._model = None, None
            # Refuses what is wrong with the folder; what does not change stays right.
            self._files = state(checkpoint_folder(config.model.path))
            self._model = task_of(config).load_model(config, labels)
            self._key = _key(config, labels)
        self._asked = config, labels
        return self._model

    def _is_of(self, config: RunConfig, labels: tuple[str, ...]) -> bool:
        """Whether the model in memory is what a run asks for; each order of a run asks."""
        known = self._asked
        if known is not None and known[0] is config and known[1] == labels:
            return True
        return _key(config, labels) == self._key

    def _is_there(self, config: RunConfig) -> bool:
        """Whether the files are those that were read."""
        try:
            return state(folder_of(config.model.path)) == self._files
        except FedllmError:
            return False


def _key(config: RunConfig, labels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "model": config.model.model_dump(mode="json", exclude={"start"}),
        "lora": config.lora.model_dump(mode="json"),
        "task": config.task,
        "learned": config.preference.model_dump(mode="json"),
        "refers_to_start": config.refers_to_start,
        "seed": config.seed,
        "labels": labels,
        "device": config.engine.device,
    }


@lru_cache(maxsize=1)
def process_models() -> ModelCache:
    """Return this process's only `ModelCache`: Flower hands handlers no state of their own."""
    return ModelCache()
