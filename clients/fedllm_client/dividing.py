"""The training records of a simulation, dealt to its sites."""

from __future__ import annotations

from fedllm.config import RunConfig
from fedllm.data.partition import split_into_sites
from fedllm.data.records import Record
from fedllm.errors import ConfigError
from fedllm.tasks import task_of


def divide(config: RunConfig) -> dict[str, list[Record]]:
    """Read the training records and deal them to sites, by name; the same in each process.

    Raises
    ------
    ConfigError
        If the sites shall tell of groups, and no column says which a record is of.
    """
    if config.evaluation.parts == "group" and config.data.group is None:
        raise ConfigError(
            "evaluation.parts = 'group' needs the column that says which group a record is of",
            "name a column of data.train, and of data.test if there is one, in data.group",
        )
    records = task_of(config).read(config.data.train, config.site_data)
    return dict(sorted(split_into_sites(records, config.data, config.seed).items()))
