"""Find the parts of texts that have a label, such as names: a trained head on each token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fedllm.config import DataSection, Task
from fedllm.data.bio import TAGGING, number_of_tags, owners, spans_of_tags, tags_of_tokens
from fedllm.data.columns import Column, task_columns
from fedllm.data.labels import Doubt, doubts
from fedllm.data.records import Record
from fedllm.data.spans import Span, read_back, written
from fedllm.models.heads import TokenHead
from fedllm.randomness import RandomStream
from fedllm.tasks.base import LearningTask, Words
from fedllm.tasks.confidence import logit_of_likelihood
from fedllm.tasks.labels import CORRECT_LABEL, foreign_label, public_labels
from fedllm.tasks.scores import ACCURACY, LOSS, Score
from fedllm.tasks.span_figures import by_label, f_measures, noised_f_measures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from fedllm.data.encode import Labelling, Problem, TokenSequence
    from fedllm.models.shared import SharedModel
    from fedllm.models.transformer import Batch
    from fedllm.tasks.predicting import SpanPredicting

# Of more in one unit no more are counted, or one could move a sum by any number.
SPANS_LIMIT = 32.0
_SPANS = (
    Score("right_spans", SPANS_LIMIT, 0.0),
    Score("predicted_spans", SPANS_LIMIT, 1.0),
    Score("gold_spans", SPANS_LIMIT, 1.0),
)


class TokenClassification(LearningTask):
    """Labelled spans of each text."""

    @property
    def name(self) -> Task:
        """What it is called in a configuration."""
        return "token_classification"

    def columns(self, data: DataSection) -> dict[str, Column]:
        """Return text and spans."""
        return task_columns(self.name, data)

    def unit(self, record: Record) -> str | None:
        """Return the person, if there is one: a record is a unit by itself."""
        return record.unit

    def labels(self, data: DataSection, public: Sequence[Record]) -> tuple[str, ...]:
        """Return at least one; see `fedllm.tasks.labels.public_labels`."""
        found = (span.label for record in public for span in _spans(record))
        return public_labels(data, found, "token classification", 1)

    def counted(self, records: Sequence[Record]) -> str:
        """Count spans and their labels."""
        found = [span.label for record in records for span in _spans(record)]
        kinds = len(set(found))
        return f"{len(found)} spans of {kinds} label{'s' if kinds != 1 else ''}"

    def doubts(self, records: Sequence[Record]) -> Sequence[Doubt]:
        """Look for labels that may be misspelt."""
        labels = ({span.label for span in _spans(record)} for record in records)
        return doubts(Counter(label for found in labels for label in found), "data.spans")

    def made_up(
        self, words: Words, stream: RandomStream, labels: tuple[str, ...], length: int = 8
    ) -> Record:
        """Make a text whose second part has a random label."""
        before, marked, after = words(1), words(1), words(max(length - 2, 0))
        label = labels[int(stream.below(len(labels), 1)[0])]
        start = len(before) + 1
        values = {
            "text": f"{before} {marked} {after}".rstrip(),
            "spans": written([Span(start, start + len(marked), label)]),
        }
        return Record(values, None, None, "made up")

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: tuple[str, ...]
    ) -> TaggedTexts:
        """Return what turns texts into tokens, and spans into their tags."""
        return TaggedTexts(tokenizer, max_length, labels)

    def head(self, labels: tuple[str, ...]) -> TokenHead:
        """Return a head with an output for each tag."""
        return TokenHead(labels, TAGGING, number_of_tags(len(labels)))

    def losses(self, model: SharedModel, batch: Batch) -> Tensor:
        """Return the cross-entropy of the tags.

        Averaged over the tokens of the record that count (label not -100); a record without
        any counts 0.
        """
        return _record_losses(model.module(batch), batch["labels"])

    def answering(self) -> None:
        """Say that it answers no prompts."""

    def prompting(self) -> None:
        """Say that it writes no text."""

    def predicting(self) -> type[SpanPredicting]:
        """Return what gives texts labelled spans."""
        from fedllm.tasks.predicting import SpanPredicting

        return SpanPredicting

    def sums(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return loss, right tokens, right, predicted and gold spans by label, and tokens."""
        import numpy as np

        logits, tags = model.module(batch).detach(), batch["labels"]
        kinds = len(model.labels)
        spans = sum((_count(*row, kinds) for row in _rows(logits, tags)), np.zeros((3, kinds)))
        tokens = int((tags != -100).sum())
        loss = float(_token_losses(logits, tags).double().sum())
        right = int((logits.argmax(2) == tags).sum())
        return np.array([loss, right, *spans.flatten(), tokens])

    def figures(
        self, sums: NDArray[np.float64], records: int, labels: tuple[str, ...]
    ) -> dict[str, float]:
        """Return mean loss of a token in nats, part of the tokens that is right, and F-measures.

        A span is right if its first and last token and its label are. Precision, recall and F1 are
        of all labels together (micro); F1 of each label has its name, where there is any such
        span.
        """
        loss, right, tokens = sums[[0, 1, -1]].tolist()
        by_kind = sums[2:-1].reshape(3, len(labels))
        right_spans, predicted, gold = by_kind.sum(axis=1).tolist()
        return {
            **f_measures(right_spans, predicted, gold),
            "loss": loss / tokens,
            "accuracy": right / tokens,
            **by_label(by_kind, labels),
            "right_spans": right_spans / records,
            "predicted_spans": predicted / records,
            "gold_spans": gold / records,
            "tokens": tokens,
            "records": float(records),
        }

    @property
    def measures(self) -> tuple[str, ...]:
        """F1, the part of the spans that is found, and loss."""
        return ("f1", "recall", "loss")

    @property
    def site_scores(self) -> tuple[Score, ...]:
        """Loss, accuracy of tokens, and how many spans are right, predicted and there."""
        return (LOSS, ACCURACY, *_SPANS)

    def scores(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return for each record the mean loss and accuracy of its tokens, and counts of spans."""
        import numpy as np

        logits, tags = model.module(batch).detach(), batch["labels"]
        losses = _record_losses(logits, tags).double().cpu().numpy()
        rows = []
        for loss, (found, true) in zip(losses, _rows(logits, tags), strict=True):
            right = sum(one == two for one, two in zip(found, true, strict=True))
            counts = _count(found, true, len(model.labels)).sum(axis=1)
            rows.append([loss, right / max(len(true), 1), *counts])
        return np.array(rows).reshape(len(tags), len(self.site_scores))

    def site_figures(self, means: dict[str, float]) -> dict[str, float]:
        """Add precision, recall and F1 of the spans that were counted."""
        return means | noised_f_measures(means) if means else means

    def confidence(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logit of the right tag's probability, a mean one over tokens."""
        return logit_of_likelihood(losses)


@dataclass(frozen=True)
class TaggedTexts:
    """Texts with the tokenizer's special tokens, cut to ``max_length``, and the tags of tokens.

    What is cut off counts nowhere, neither as learned nor as missed.

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
        """A tag for each token."""
        from fedllm.data.encode import labels_as_given

        return labels_as_given

    def sequences(self, records: Sequence[Record]) -> Iterator[TokenSequence]:
        """Tokenise texts, and tag the tokens.

        The target is the first span's label, the number of labels where there is no span, and -1
        where a label is not in the public set.
        """
        from fedllm.data.encode import IGNORED, TokenSequence, tokens_cut

        encoded = self.tokenizer(
            [record.values["text"] for record in records],
            truncation=True,
            max_length=self.max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        number_of = {label: number for number, label in enumerate(self.labels)}
        cut = tokens_cut(encoded)
        for place, record in enumerate(records):
            ids, spans = encoded["input_ids"][place], _spans(record)
            labels = [number_of.get(span.label, -1) for span in spans]
            if -1 in labels:
                yield TokenSequence(ids, -1, [IGNORED] * len(ids))
                continue
            tags = tags_of_tokens(
                owners(record.values["text"], spans),
                labels,
                encoded["offset_mapping"][place],
                encoded["special_tokens_mask"][place],
                IGNORED,
            )
            target = labels[0] if labels else len(self.labels)
            yield TokenSequence(ids, target, list(tags), cut[place])

    def problem(self, sequence: TokenSequence, record: Record) -> Problem | None:
        """Refuse labels that are not public, and texts without tokens."""
        if sequence.target < 0:
            return partial(self._foreign, record), CORRECT_LABEL
        if max(sequence.tags, default=-1) < 0:
            return "its text has no tokens to learn from", "take the record out of the source"
        return None

    def _foreign(self, record: Record) -> str:
        """Say that a label is not public, and which public one is nearest to it."""
        label = next(span.label for span in _spans(record) if span.label not in self.labels)
        field = f"field '{record.columns['spans']}'" if record.columns else "its spans"
        return foreign_label(f"a label in {field}", label, self.labels)


def _spans(record: Record) -> list[Span]:
    return read_back(record.values["spans"])


def _token_losses(logits: Tensor, tags: Tensor) -> Tensor:
    """Return the loss of each token (B, T), 0 where none is taken."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.transpose(1, 2), tags, reduction="none", ignore_index=-100)


def _record_losses(logits: Tensor, tags: Tensor) -> Tensor:
    return _token_losses(logits, tags).sum(1) / (tags != -100).sum(1).clamp(min=1)


def _rows(logits: Tensor, tags: Tensor) -> Iterator[tuple[list[int], list[int]]]:
    """Yield for each record the tags that the model gives, and the right ones, where they count."""
    for found, true in zip(logits.argmax(2).cpu(), tags.cpu(), strict=True):
        counts = true != -100
        yield found[counts].tolist(), true[counts].tolist()


def _count(found: Sequence[int], true: Sequence[int], labels: int) -> NDArray[np.float64]:
    """Count one record's spans that are right, predicted and there, by label, (3, L)."""
    import numpy as np

    predicted, gold = set(spans_of_tags(found)), set(spans_of_tags(true))
    counts = np.zeros((3, labels))
    for row, spans in enumerate((predicted & gold, predicted, gold)):
        for span in spans:
            counts[row, span.label] += 1
    return counts
