"""The training records of a simulation, dealt to its sites."""

from __future__ import annotations

from fedllm.config import RunConfig
from fedllm.data.partition import split_into_sites
from fedllm.data.records import Record
from fedllm.tasks import task_of


def divide(config: RunConfig) -> dict[str, list[Record]]:
    """Read the training records and deal them to sites, by name; the same in each process."""
    records = task_of(config.task).read(config.data.train, config.data)
    return dict(sorted(split_into_sites(records, config.data, config.seed).items()))
