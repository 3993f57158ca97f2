"""Sort texts into labels that all parties know: a trained head on any base model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fedllm.config import DataSection, Task
from fedllm.data.columns import Column, task_columns
from fedllm.data.labels import Doubt, check_distinct, doubts, nearest
from fedllm.data.records import Record
from fedllm.errors import DataError
from fedllm.models.heads import LabelHead
from fedllm.randomness import RandomStream
from fedllm.tasks.base import LearningTask, Words
from fedllm.tasks.scores import ACCURACY, LOSS, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from fedllm.data.encode import Labelling, Problem, TokenSequence
    from fedllm.models.shared import SharedModel
    from fedllm.models.transformer import Batch

_SHOWN_LABELS, _SHOWN_LETTERS = 20, 100


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
        """Return the public set of labels, whose order numbers them.

        ``data.labels`` as given, else the labels of the public test records, sorted by code
        point, or by value if all are whole numbers. Never taken from private records, where
        the presence of a rare label would be known to all.

        Raises
        ------
        DataError
            If neither gives at least two labels, ``data.labels`` repeats one, or two of them
            look alike.
        """
        if data.labels is not None:
            if len(set(data.labels)) < len(data.labels):
                raise DataError("data.labels names a label twice", "name each label once")
            labels = data.labels
        else:
            labels = tuple(sorted({record.values["label"] for record in public}))
            if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
                labels = tuple(sorted(labels, key=lambda label: (int(label), label)))
        if len(labels) < 2:
            raise DataError(
                f"the public set of labels has {len(labels)} label(s), classification needs two",
                "list them in data.labels, or give a public data.test file that has them all",
            )
        listed = data.labels is not None
        where = "data.labels" if listed else data.test or "data.test"
        check_distinct(labels, where, listed=listed)
        return labels

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

    def sums(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return loss, right answers and records."""
        import numpy as np

        scores = self.scores(model, batch)
        return np.array([*scores.sum(axis=0), len(scores)])

    def figures(self, sums: NDArray[np.float64], records: int) -> dict[str, float]:
        """Return mean loss of a record in nats, accuracy and the number of records."""
        loss, right, count = sums.tolist()
        return {"loss": loss / count, "accuracy": right / count, "records": float(records)}

    @property
    def measures(self) -> tuple[str, ...]:
        """Accuracy and loss."""
        return ("accuracy", "loss")

    @property
    def site_scores(self) -> tuple[Score, ...]:
        """Loss and accuracy."""
        return (LOSS, ACCURACY)

    def scores(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return for each record its loss in nats and whether the label is right."""
        import torch
        from torch.nn.functional import cross_entropy

        logits, labels = model.module(batch), batch["labels"]
        losses = cross_entropy(logits, labels, reduction="none").double()
        return torch.stack([losses, (logits.argmax(1) == labels).double()], dim=1).detach().numpy()

    def confidence(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logit of the right label's probability: LiRA's choice."""
        import numpy as np

        right = np.exp(-np.clip(losses, 1e-7, 50.0))
        return np.log(right) - np.log1p(-right)


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
        from fedllm.data.encode import TokenSequence

        texts = [record.values["text"] for record in records]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        number_of = {label: number for number, label in enumerate(self.labels)}
        for record, ids in zip(records, encoded, strict=True):
            yield TokenSequence(ids, number_of.get(record.values["label"], -1))

    def problem(self, sequence: TokenSequence, record: Record) -> Problem | None:
        """Refuse labels that are not public, and texts without tokens."""
        if sequence.target < 0:
            return (
                partial(self._foreign, record),
                "correct the label (white space, case and Unicode form count), or add it to "
                "data.labels",
            )
        if not sequence.ids:
            return "its text has no tokens to learn from", "take the record out of the source"
        return None

    def _foreign(self, record: Record) -> str:
        """Say that a label is not public, and which public one is nearest to it."""
        what = f"field '{record.columns['label']}'" if record.columns else "its label"
        shown = ", ".join(repr(label[:_SHOWN_LETTERS]) for label in self.labels[:_SHOWN_LABELS])
        if len(self.labels) > _SHOWN_LABELS:
            shown += f" and {len(self.labels) - _SHOWN_LABELS} more"
        near = nearest(record.values["label"], self.labels)
        return f"{what} is not one of the {len(self.labels)} public labels ({shown})" + (
            f"; the nearest is {near!r}" if near is not None else ""
        )
