"""What a task does, for tests that have its name at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedllm.config import DataSection, RunConfig, Task
from fedllm.data.records import Record
from fedllm.tasks import task_of

if TYPE_CHECKING:
    import torch

    from fedllm.data.encode import EncodedDataset
    from fedllm.models.shared import SharedModel


def read_records(location: str, data: DataSection, task: Task) -> list[Record]:
    """Read the records of a task."""
    return task_of(task).read(location, data)


def encode(
    records: list[Record], task: Task, tokenizer, max_length: int, labels: tuple[str, ...] = ()
) -> EncodedDataset:
    """Encode records for a task."""
    return task_of(task).encode(records, tokenizer, max_length, labels)


def load_model(config: RunConfig, labels: tuple[str, ...] = ()) -> SharedModel:
    """Load the model of a run."""
    return task_of(config).load_model(config, labels)


def record(origin: str = "a.jsonl:1", unit: str | None = None, **values: str) -> Record:
    """Make a record."""
    return Record(values, unit, None, origin)


def everything(dataset) -> dict[str, torch.Tensor]:
    """Return a data set as one batch."""
    return dataset.batch(np.arange(len(dataset)))


def sequence(batch: dict[str, torch.Tensor], row: int) -> list[int]:
    """Return the token ids of a row without padding."""
    return batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
