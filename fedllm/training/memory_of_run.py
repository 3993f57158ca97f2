"""The memory estimate of a run, whose task says what is trained and what the loss is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from torch import Tensor

from fedllm.config import RunConfig
from fedllm.config.task import trains_a_head
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch
from fedllm.tasks import task_of
from fedllm.training.memory import MemoryEstimate, Module, estimate

# A head's labels stand in the data, which is not read; a hundred more are a few hundred kilobytes.
_LABELS = tuple(f"label {number}" for number in range(100))


def memory_of(config: RunConfig, folder: Path) -> MemoryEstimate:
    """Estimate a site's memory for training in a run; errors as `estimate`."""
    task, sequences = task_of(config).sized_as()

    def losses(module: Module, batch: Batch) -> Tensor:
        # Losses ask for the module alone.
        return task.losses(cast(SharedModel, SimpleNamespace(module=module)), batch)

    head = task.head(_LABELS if trains_a_head(task.name) else ())
    return estimate(config, folder, head, losses, sequences)
