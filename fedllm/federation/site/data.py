"""A site's records as rounds need them: read once, split once, encoded once for a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedllm.config import RunConfig, Task
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record
from fedllm.errors import DataError
from fedllm.federation.protocol.evaluating import Holdout
from fedllm.identity.keys import Identity
from fedllm.models.shared import SharedModel
from fedllm.tasks import task_of


@dataclass(frozen=True)
class Datasets:
    """What a site trains on and what it evaluates on; ``held_out`` is None without any."""

    training: EncodedDataset
    held_out: EncodedDataset | None


class SiteData:
    """Keeps a site's records and their token sequences in memory.

    Parameters
    ----------
    read : callable
        Reads the site's records of a task.
    identity : Identity
        Decides, by a secret, which records are held out.
    """

    def __init__(self, read: Callable[[Task], list[Record]], identity: Identity) -> None:
        self._read = read
        self._identity = identity
        self._records: dict[Task, list[Record]] = {}
        self._encoded: tuple[SharedModel, float, Datasets] | None = None

    def records(self, task: Task) -> list[Record]:
        """Return all of them, in the roles of a task."""
        if task not in self._records:
            self._records[task] = self._read(task)
        return self._records[task]

    def datasets(self, config: RunConfig, model: SharedModel) -> Datasets:
        """Return the site's data sets for one model.

        Raises
        ------
        DataError
            If nothing is left to train on.
        """
        fraction = config.evaluation.holdout if config.evaluation.every else 0.0
        if self._encoded is None or self._encoded[:2] != (model, fraction):
            self._encoded = (model, fraction, self._encode(config, model, fraction))
        return self._encoded[2]

    def _encode(self, config: RunConfig, model: SharedModel, fraction: float) -> Datasets:
        def encoded(records: list[Record]) -> EncodedDataset:
            task, length = task_of(config.task), config.model.max_length
            return task.encode(records, model.tokenizer, length, model.labels)

        if not fraction:
            return Datasets(encoded(self.records(config.task)), None)
        holdout = Holdout(self._identity.derive("held-out records"), fraction)
        training, held_out = holdout.split(self.records(config.task))
        if not training:
            raise DataError(
                "every record of this site is held out for evaluation",
                "the run must set a smaller evaluation.holdout",
            )
        return Datasets(encoded(training), encoded(held_out) if held_out else None)
