"""The loss of each record, by the model's task."""

from __future__ import annotations

from torch import Tensor

from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch
from fedllm.tasks import task_of


def record_losses(model: SharedModel, batch: Batch) -> Tensor:
    """Return one loss a record, (B,), float32, in nats; see `LearningTask.losses`."""
    return task_of(model).losses(model, batch)
