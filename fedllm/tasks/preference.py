"""Learn which answers people prefer: a model that writes them, or one that tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedllm.config import DataSection, PreferenceSection, Task
from fedllm.data.columns import Column, task_columns
from fedllm.data.labels import Doubt
from fedllm.data.rankings import Ranking
from fedllm.data.records import Record
from fedllm.models.heads import LanguageHead, RewardHead
from fedllm.randomness import RandomStream
from fedllm.tasks.base import LearningTask, Words
from fedllm.tasks.causal import Causal
from fedllm.tasks.classification import Classification
from fedllm.tasks.confidence import logit_of_likelihood
from fedllm.tasks.preference_encoding import Answers, Choices, Rankings
from fedllm.tasks.preference_events import disputed, events, rows_of
from fedllm.tasks.scores import ACCURACY, LOSS, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from fedllm.models.shared import SharedModel
    from fedllm.models.transformer import Batch
    from fedllm.tasks.answering import Answering
    from fedllm.tasks.preference_asking import Judging
    from fedllm.tasks.prompting import TemplatedPrompting

# What the loss of a record is whose answers are all tied: nothing is known, nothing is wrong.
_TIED = (0.6931471805599453, 0.5)


@dataclass(frozen=True)
class Preference(LearningTask):
    """Ranking events: a prompt, some answers, and which of them people prefer.

    Attributes
    ----------
    learned : PreferenceSection
        What is made of them.
    """

    learned: PreferenceSection = field(default_factory=PreferenceSection)

    @property
    def name(self) -> Task:
        """What it is called in a configuration."""
        return "preference"

    def columns(self, data: DataSection) -> dict[str, Column]:
        """Return prompt, context, and a pair of answers or a ranking of several."""
        return task_columns(self.name, data)

    def read(self, location: str, data: DataSection) -> list[Record]:
        """Read all ranking events of a source; see the base class."""
        return events(super().read(location, rows_of(data)), data.max_records_per_unit)

    def unit(self, record: Record) -> str | None:
        """Return the person, if there is one: an event is one record, and a unit by itself."""
        return record.unit

    def labels(self, data: DataSection, public: Sequence[Record]) -> tuple[str, ...]:
        """Return no labels."""
        return ()

    def counted(self, records: Sequence[Record]) -> str:
        """Count pairs, and events that say nothing."""
        found = [len(Ranking.read_back(record.values).pairs) for record in records]
        tied = sum(count == 0 for count in found)
        return f"{sum(found)} pairs of answers" + (f", {tied} of ties alone" if tied else "")

    def doubts(self, records: Sequence[Record]) -> Sequence[Doubt]:
        """Look for pairs that were preferred in both ways."""
        count = disputed(records)
        if not count:
            return ()
        return (
            Doubt(
                f"{count} pairs of answers are preferred in both ways by rows of one prompt",
                "where raters disagree that is right, and is learned as it is; else look whether "
                "data.chosen and data.rejected are exchanged in a part of the source",
            ),
        )

    def made_up(
        self, words: Words, stream: RandomStream, labels: tuple[str, ...], length: int = 8
    ) -> Record:
        """Make a prompt and two answers, of which the first is short.

        So they differ also where the words are all unknown, and where a text is cut.
        """
        answers = words(1), words(max(length - 1, 2))
        values = Ranking(words(length), "", answers, ((0, 1),)).written()
        return Record(values, None, None, "made up")

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: tuple[str, ...]
    ) -> Rankings:
        """Return what turns events into one sequence an answer, or two a pair of them."""
        made = Choices if self.learned.objective == "selector" else Answers
        return made(tokenizer, max_length)

    def head(self, labels: tuple[str, ...]) -> LanguageHead | RewardHead:
        """Return a head for one number, or the base's own."""
        return RewardHead() if self.learned.objective == "reward" else LanguageHead()

    def losses(self, model: SharedModel, batch: Batch) -> Tensor:
        """Return the mean loss of the record's pairs; 0 where all answers are tied."""
        from fedllm.tasks.preference_losses import margins, means_of_records, pair_losses

        found, records = margins(model, batch)
        losses = pair_losses(self.learned.objective, found)
        return means_of_records(losses, records, len(batch["labels"]))

    def sized_as(self) -> tuple[LearningTask, int]:
        """Return a task that reads one sequence, of which a pair of answers is two."""
        if self.learned.objective == "reward":
            return Classification(), 2
        return Causal(), 2

    def answering(self) -> type[Answering] | None:
        """Return what completes prompts, of a model that writes."""
        from fedllm.tasks.preference_asking import PreferredAnswering

        return PreferredAnswering if self.learned.refers else None

    def prompting(self) -> type[TemplatedPrompting] | None:
        """Return what puts the template around a question, for a model that writes."""
        from fedllm.tasks.prompting import TemplatedPrompting

        return TemplatedPrompting if self.learned.refers else None

    def predicting(self) -> None:
        """Say that it gives texts no labels; see `judging`."""

    def judging(self) -> type[Judging] | None:
        """Return what says how good answers are; None of a model that writes."""
        from fedllm.tasks.preference_asking import Rewarding, Selecting

        if self.learned.refers:
            return None
        return Rewarding if self.learned.objective == "reward" else Selecting

    def sums(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return loss, right pairs, and what an interval is made of; see `preference_figures`."""
        from fedllm.tasks.preference_figures import sums_of

        margin, losses, records = self._of_pairs(model, batch)
        return sums_of(batch, margin, losses, records)

    def figures(
        self, sums: NDArray[np.float64], records: int, labels: tuple[str, ...]
    ) -> dict[str, float]:
        """Return loss in nats and accuracy of pairs, with an interval, beside two rules'."""
        from fedllm.tasks.preference_figures import figures_of

        return figures_of(sums, records)

    @property
    def measures(self) -> tuple[str, ...]:
        """Accuracy of pairs and loss."""
        return ("accuracy", "loss")

    @property
    def site_scores(self) -> tuple[Score, ...]:
        """Loss and accuracy."""
        return (LOSS, ACCURACY)

    @property
    def compared(self) -> Score:
        """Accuracy."""
        return ACCURACY

    def scores(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return for each record the mean loss of its pairs, in nats, and how many are right."""
        import numpy as np

        from fedllm.tasks.preference_figures import shares_right

        margin, losses, records = self._of_pairs(model, batch)
        size = len(batch["labels"])
        counts = np.bincount(records, minlength=size)
        found = np.tile(np.array(_TIED), (size, 1))
        known = counts > 0
        for column, values in enumerate((losses, shares_right(margin))):
            sums = np.bincount(records, weights=values, minlength=size)
            found[known, column] = sums[known] / counts[known]
        return found

    def confidence(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the margin, where the loss says it; else minus the loss."""
        if self.learned.objective in ("ipo", "hinge"):
            return -losses
        return logit_of_likelihood(losses)

    def _of_pairs(
        self, model: SharedModel, batch: Batch
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return margins, losses in nats whatever is trained by, and records, (P,) each."""
        from fedllm.tasks.preference_losses import margins, pair_losses

        found, records = margins(model, batch)
        margin = found.detach().double()
        losses = pair_losses("reward", margin)
        return margin.cpu().numpy(), losses.cpu().numpy(), records.cpu().numpy()
