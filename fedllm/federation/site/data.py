"""A site's records as rounds need them: read once, split once, encoded once for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedllm.config import RunConfig, Task
from fedllm.data.columns import MissingColumnError
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record, RowProblems
from fedllm.errors import RefusedError
from fedllm.federation.protocol.evaluating import Holdout
from fedllm.identity.keys import Identity
from fedllm.mechanisms import rounded_size
from fedllm.models.shared import SharedModel
from fedllm.tasks import task_of


@dataclass(frozen=True)
class Datasets:
    """What a site trains on and what it evaluates on; ``held_out`` is None without any.

    ``left_out`` says which records cannot be learned from, for the site's own log; their units
    are empty. It is empty itself if there are none. ``cut_off`` says how much of the records that
    are trained on is longer than what a run reads.
    """

    training: EncodedDataset
    held_out: EncodedDataset | None
    left_out: str = ""
    cut_off: str = ""


class SiteData:
    """Keeps a site's records and their token sequences in memory.

    Whether records can be read is seen once, when the site starts. From then on nothing that a
    coordinator asks is refused because of a record.

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
        self._offered: tuple[Task, ...] | None = None
        self._encoded: tuple[SharedModel, float, Datasets] | None = None

    def read_all(self, tasks: Iterable[Task]) -> tuple[Task, ...]:
        """Read the records for every task whose columns are there, and return those tasks.

        Raises
        ------
        MissingColumnError
            If no task has its columns.
        DataError
            If the source cannot be read, or has a row that cannot be used.
        """
        first: MissingColumnError | None = None
        for task in tasks:
            try:
                self.records(task)
            except MissingColumnError as error:
                first = first or error
        if first is not None and not self._records:
            raise first
        self._offered = tuple(self._records)
        return self._offered

    def records(self, task: Task) -> list[Record]:
        """Return all of them, in the roles of a task.

        Raises
        ------
        RefusedError
            If `read_all` did not find the task's columns. What the source holds by now is not
            looked at: an error in it would be an answer about a record.
        """
        if self._offered is not None and task not in self._offered:
            raise RefusedError(
                f"this site's records had no columns for the task '{task}' when it started",
                "restart the site after its source has them",
            )
        if task not in self._records:
            self._records[task] = self._read(task)
        return self._records[task]

    def require_unit(self, config: RunConfig) -> None:
        """Refuse a run that promises privacy to persons if the site's records name none.

        Raises
        ------
        RefusedError
            Depends on the columns that the site's policy names alone.
        """
        if config.unit != "person":
            return
        if any(record.unit is None for record in self.records(config.task)):
            raise RefusedError(
                "the run protects persons, and this site's records name none",
                "name the column of the person in data.unit of the site's policy",
            )

    def units(self, config: RunConfig) -> int:
        """Return how many records or persons there are to train on, about; at least 1.

        By their number, rounded first, and the part that is held out: asked again with other
        parts, it tells no more than `rounded_size` does. Which are held out is secret, and so is
        how many exactly.
        """
        records = self.records(config.task)
        persons = len({record.unit for record in records if record.unit is not None})
        nameless = sum(record.unit is None for record in records)
        return max(1, int(rounded_size(persons + nameless) * (1.0 - _held_out(config))))

    def datasets(self, config: RunConfig, model: SharedModel) -> Datasets:
        """Return the site's data sets for one model, whatever the records are."""
        fraction = _held_out(config)
        if self._encoded is None or self._encoded[:2] != (model, fraction):
            self._encoded = (model, fraction, self._encode(config, model, fraction))
        return self._encoded[2]

    def _encode(self, config: RunConfig, model: SharedModel, fraction: float) -> Datasets:
        problems = RowProblems()

        def encoded(records: list[Record]) -> EncodedDataset:
            task, length = task_of(config), config.model.max_length
            return task.encode(records, model.tokenizer, length, model.labels, problems)

        training, held_out = self.records(config.task), list[Record]()
        if fraction:
            holdout = Holdout(self._identity.derive("held-out records"), fraction)
            training, held_out = holdout.split(training)
        datasets = (encoded(training), encoded(held_out) if held_out else None)
        why = []
        if problems.count:
            why.append(problems.text("left out of training and evaluation"))
        if not training:
            why.append("every record is held out for evaluation: nothing is left to train on")
        return Datasets(*datasets, "\n".join(why), datasets[0].cut_off)


def _held_out(config: RunConfig) -> float:
    return config.evaluation.holdout if config.evaluation.every else 0.0
