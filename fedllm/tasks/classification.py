"""Sort texts into labels that all parties know: a trained head on any base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fedllm.config import DataSection, Task
from fedllm.data.columns import Column, task_columns
from fedllm.data.labels import Doubt, doubts
from fedllm.data.records import Record
from fedllm.models.heads import LabelHead
from fedllm.randomness import RandomStream
from fedllm.tasks.base import LearningTask, Words
from fedllm.tasks.confidence import logit_of_likelihood
from fedllm.tasks.labels import CORRECT_LABEL, foreign_label, public_labels
from fedllm.tasks.scores import ACCURACY, LOSS, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from fedllm.data.encode import Labelling, Problem, TokenSequence
    from fedllm.models.shared import SharedModel
    from fedllm.models.transformer import Batch
    from fedllm.tasks.predicting import LabelPredicting


class Classification(LearningTask):
    """One label for each text."""

    @property
    def name(self) -> Task:
        """What it is called in a configuration."""
        return "classification"

    def columns(self, data: DataSection) -> dict[str, Column]:
        """Return text and label."""
        return task_columns(self.name, data)

    def unit(self, record: Record) -> str | None:
        """Return the person, if there is one: a record is a unit by itself."""
        return record.unit

    def labels(self, data: DataSection, public: Sequence[Record]) -> tuple[str, ...]:
        """Return at least two; see `fedllm.tasks.labels.public_labels`."""
        found = (record.values["label"] for record in public)
        return public_labels(data, found, "classification", 2)

    def counted(self, records: Sequence[Record]) -> str:
        """Count the labels."""
        return f"{len({record.values['label'] for record in records})} labels"

    def doubts(self, records: Sequence[Record]) -> Sequence[Doubt]:
        """Look for labels that may be misspelt."""
        return doubts(Counter(record.values["label"] for record in records))

    def made_up(
        self, words: Words, stream: RandomStream, labels: tuple[str, ...], length: int = 8
    ) -> Record:
        """Make a text with a random label."""
        text = words(length)
        label = labels[int(stream.below(len(labels), 1)[0])]
        return Record({"text": text, "label": label}, None, None, "made up")

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: tuple[str, ...]
    ) -> LabelledTexts:
        """Return what turns texts into tokens, and labels into numbers."""
        return LabelledTexts(tokenizer, max_length, labels)

    def head(self, labels: tuple[str, ...]) -> LabelHead:
        """Return a head with an output for each label."""
        return LabelHead(labels)

    def losses(self, model: SharedModel, batch: Batch) -> Tensor:
        """Return the cross-entropy of each record's label."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(model.module(batch), batch["labels"], reduction="none")

    def answering(self) -> None:
        """Say that a classifier answers no prompts."""

    def prompting(self) -> None:
        """Say that it writes no text."""

    def predicting(self) -> type[LabelPredicting]:
        """Return what gives texts a label."""
        from fedllm.tasks.predicting import LabelPredicting

        return LabelPredicting

    def sums(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return loss, right answers and records."""
        import numpy as np

        scores = self.scores(model, batch)
        return np.array([*scores.sum(axis=0), len(scores)])

    def figures(
        self, sums: NDArray[np.float64], records: int, labels: tuple[str, ...]
    ) -> dict[str, float]:
        """Return mean loss of a record in nats, accuracy and the number of records."""
        loss, right, count = sums.tolist()
        return {"loss": loss / count, "accuracy": right / count, "records": float(records)}

    def classes(self, records: Sequence[Record]) -> tuple[str, ...]:
        """Return the labels."""
        return tuple(record.values["label"] for record in records)

    @property
    def measures(self) -> tuple[str, ...]:
        """Accuracy and loss."""
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
        """Return for each record its loss in nats and whether the label is right."""
        import torch
        from torch.nn.functional import cross_entropy

        logits, labels = model.module(batch), batch["labels"]
        losses = cross_entropy(logits, labels, reduction="none").double()
        right = (logits.argmax(1) == labels).double()
        return torch.stack([losses, right], dim=1).detach().cpu().numpy()

    def confidence(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logit of the right label's probability: LiRA's choice."""
        return logit_of_likelihood(losses)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the tokenizer's special tokens, cut to ``max_length``, and their labels.

    Attributes
    ----------
    labels : tuple of str
        The public set.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    labels: tuple[str, ...]

    @property
    def labelling(self) -> Labelling:
        """One label a sequence."""
        from fedllm.data.encode import labels_of_sequences

        return labels_of_sequences

    def sequences(self, records: Sequence[Record]) -> Iterator[TokenSequence]:
        """Tokenise texts; a label that is not in the public set has the number -1."""
        from fedllm.data.encode import TokenSequence, tokens_cut

        texts = [record.values["text"] for record in records]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        number_of = {label: number for number, label in enumerate(self.labels)}
        sequences = zip(records, encoded["input_ids"], tokens_cut(encoded), strict=True)
        for record, ids, cut in sequences:
            yield TokenSequence(ids, number_of.get(record.values["label"], -1), cut=cut)

    def problem(self, sequence: TokenSequence, record: Record) -> Problem | None:
        """Refuse labels that are not public, and texts without tokens."""
        if sequence.target < 0:
            return partial(self._foreign, record), CORRECT_LABEL
        if not sequence.ids:
            return "its text has no tokens to learn from", "take the record out of the source"
        return None

    def _foreign(self, record: Record) -> str:
        """Say that a label is not public, and which public one is nearest to it."""
        what = f"field '{record.columns['label']}'" if record.columns else "its label"
        return foreign_label(what, record.values["label"], self.labels)
