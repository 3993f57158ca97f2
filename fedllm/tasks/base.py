"""What a task must say, from the columns that it reads to how its model answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedllm.config import DataSection, RunConfig, Task
from fedllm.config.task import either_of
from fedllm.data.columns import Column
from fedllm.data.labels import Doubt
from fedllm.data.records import Record, RowProblems
from fedllm.errors import DataError
from fedllm.models.heads import Head
from fedllm.randomness import RandomStream
from fedllm.tasks.scores import LOSS, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from fedllm.data.encode import EncodedDataset, Encoder
    from fedllm.models.shared import SharedModel
    from fedllm.models.transformer import Batch
    from fedllm.tasks.answering import Answering
    from fedllm.tasks.predicting import Predicting
    from fedllm.tasks.preference_asking import Judging
    from fedllm.tasks.prompting import Prompting

# Makes so many words.
Words = Callable[[int], str]


class LearningTask(ABC):
    """A task without state: the abstract members are what a new one has to say."""

    # --- records ------------------------------------------------------------------------

    @property
    @abstractmethod
    def name(self) -> Task:
        """What it is called in a configuration."""

    @abstractmethod
    def columns(self, data: DataSection) -> Mapping[str, Column]:
        """Return the columns that it reads, by role; a role is the key that names the column."""

    @abstractmethod
    def unit(self, record: Record) -> str | None:
        """Return the key of the unit of privacy that a record as read belongs to.

        Records with the same key are sampled, clipped, held out and counted together.
        ``record.unit`` is the person, if ``data.unit`` names persons. None: the record is a
        unit by itself. `fedllm.config.task.smallest_unit` has the unit's name.
        """

    @abstractmethod
    def labels(self, data: DataSection, public: Sequence[Record]) -> tuple[str, ...]:
        """Return the public set of labels; empty for a task without labels.

        Raises
        ------
        DataError
            If there is no such set.
        """

    @abstractmethod
    def counted(self, records: Sequence[Record]) -> str:
        """Say more of a site's records than their number, in counts; may be empty."""

    def doubts(self, records: Sequence[Record]) -> Sequence[Doubt]:
        """Say what looks wrong in a site's records as a whole, to the site's own people."""
        return ()

    @abstractmethod
    def made_up(
        self, words: Words, stream: RandomStream, labels: tuple[str, ...], length: int = 8
    ) -> Record:
        """Make a record that is nobody's, for audits and checks of a machine.

        Parameters
        ----------
        words : callable
            Makes text.
        stream : RandomStream
            Chooses what is no text.
        labels : tuple of str
            The public set of labels, or those of them to choose from.
        length : int
            Words of one text, about.
        """

    @abstractmethod
    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: tuple[str, ...]
    ) -> Encoder:
        """Return what turns records into token sequences of at most ``max_length``."""

    # --- the model ----------------------------------------------------------------------

    @abstractmethod
    def head(self, labels: tuple[str, ...]) -> Head:
        """Return what stands on top of the base model."""

    @abstractmethod
    def losses(self, model: SharedModel, batch: Batch) -> Tensor:
        """Return one loss a record, (B,), float32, in nats; differentiable.

        A record's loss may depend on other records of the batch only if they are of its unit:
        all records of a unit are in one batch, and gradients are clipped by unit.
        """

    @abstractmethod
    def answering(self) -> type[Answering] | None:
        """Return what completes prompts with a tuned model; None if it answers no prompts."""

    @abstractmethod
    def prompting(self) -> type[Prompting] | None:
        """Return what puts a person's words to a tuned model; None if it writes no text."""

    @abstractmethod
    def predicting(self) -> type[Predicting] | None:
        """Return what gives texts their labels by a tuned model; None if it has no labels."""

    def judging(self) -> type[Judging] | None:
        """Return what says how good answers to a prompt are; None of most tasks."""
        return None

    # --- how good it is -----------------------------------------------------------------

    @abstractmethod
    def sums(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return what a batch adds to the figures of a public data set, (K,).

        The last value counts what the others are divided by.
        """

    @abstractmethod
    def figures(
        self, sums: NDArray[np.float64], records: int, labels: tuple[str, ...]
    ) -> dict[str, float]:
        """Turn the sums of a data set of so many records into metrics by name."""

    def classes(self, records: Sequence[Record]) -> tuple[str, ...]:
        """Return the class of each public record, whose quality is told by itself; or nothing."""
        return ()

    @property
    @abstractmethod
    def measures(self) -> tuple[str, ...]:
        """Which of `figures` tell how training goes; the most telling first."""

    @property
    @abstractmethod
    def site_scores(self) -> tuple[Score, ...]:
        """What sites sum up over the units that they hold out, through the encrypted channel."""

    @property
    def compared(self) -> Score:
        """Which of `site_scores` says best whether one model is better than another for a site."""
        return LOSS

    @abstractmethod
    def scores(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return the value of each of `site_scores` for each record, (B, S), not yet bounded."""

    @abstractmethod
    def confidence(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn losses (N,) into a quantity that is nearly normal over models, (N,).

        For membership inference; larger where the model knows the record better.
        """

    # --- what follows from these ----------------------------------------------------------

    def sized_as(self) -> tuple[LearningTask, int]:
        """Return a task whose records need as much memory, and of how many of them one is made."""
        return self, 1

    def site_figures(self, means: dict[str, float]) -> dict[str, float]:
        """Return what an opened sum of `site_scores` says (`fedllm.tasks.scores.means`).

        With what follows from several of its means, if anything does.
        """
        return means

    def read(self, location: str, data: DataSection) -> list[Record]:
        """Read all records of a source, with their units.

        Raises
        ------
        DataError
            See `fedllm.data.sources.read_records`.
        """
        from fedllm.data.sources import read_records

        records = read_records(location, data, self.columns(data), either_of(self.name))
        return [replace(record, unit=self.unit(record)) for record in records]

    def read_public(self, data: DataSection) -> list[Record]:
        """Read the public test records, which belong to nobody; none if there is no such file.

        Raises
        ------
        DataError
            See `fedllm.data.sources.read_records`.
        """
        if data.test is None:
            return []
        nobodys = data.model_copy(
            update={"unit": None, "site": data.group, "group": None, "query": None}
        )
        records = self.read(data.test, nobodys)
        if data.group is not None and any(record.site is None for record in records):
            raise DataError(
                f"data.test: {data.test} has no column {data.group!r}",
                "name a column of the public test file in data.group, or leave it out",
            )
        return records

    def encode(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        labels: tuple[str, ...] = (),
        left_out: RowProblems | None = None,
    ) -> EncodedDataset:
        """Turn records, which may be none, into what trains.

        Parameters
        ----------
        left_out : RowProblems, optional
            Where given, takes the records that cannot be learned from; see
            `fedllm.data.encode.encode`.

        Raises
        ------
        DataError
            If a record cannot be learned from, and ``left_out`` is not given.
        ConfigError
            If the tokenizer or ``max_length`` does not fit the task.
        """
        from fedllm.data.encode import encode

        encoder = self.encoder(tokenizer, max_length, labels)
        return encode(records, encoder, tokenizer, max_length, left_out)

    def load_model(self, config: RunConfig, labels: tuple[str, ...] = ()) -> SharedModel:
        """Load the base model of a run with the run's untrained adapter and this task's head.

        Raises
        ------
        ConfigError
            If the task does not fit the base model, or labels are missing.
        CheckpointError
            If the checkpoint is missing, damaged or not supported.
        """
        from fedllm.models.shared import load_shared_model

        return load_shared_model(config, self.head(labels))
