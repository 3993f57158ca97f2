"""Let a tuned model label texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedllm.data.bio import spans_of_tags
from fedllm.data.encode import tokens_cut
from fedllm.models.pieces import by_width

if TYPE_CHECKING:
    from fedllm.models.shared import SharedModel
    from fedllm.models.transformer import Batch

# Texts that are tokenised together, and of these computed at once.
_CHUNK, _ROWS = 512, 32


class Prediction(ABC):
    """What a model says of one text."""

    cut: int

    @property
    @abstractmethod
    def answer(self) -> Hashable:
        """What it says, without how likely that is: equal where two models say the same."""

    @abstractmethod
    def fields(self, most: int) -> dict[str, Any]:
        """Return it as JSON has it; of labels at most so many, the likeliest first, 0 for all."""

    @abstractmethod
    def words(self, most: int) -> str:
        """Return it in a line for people."""


@dataclass(frozen=True, slots=True)
class LabelPrediction(Prediction):
    """Labels of one text.

    Attributes
    ----------
    labels : tuple of (str, float)
        All labels with their probabilities, the likeliest first.
    cut : int
        Tokens of the text beyond the largest length, which were not read.
    """

    labels: tuple[tuple[str, float], ...]
    cut: int

    @property
    def answer(self) -> str:
        """The likeliest label."""
        return self.labels[0][0]

    def fields(self, most: int) -> dict[str, Any]:
        """Return the likeliest label, and some labels with their probabilities."""
        label, probability = self.labels[0]
        shown = self.labels[: most or None]
        several = [{"label": name, "probability": share} for name, share in shown]
        return {"label": label, "probability": probability, "labels": several}

    def words(self, most: int) -> str:
        """Return some labels with their probabilities."""
        return ", ".join(f"{name} {share:.3f}" for name, share in self.labels[: most or None])


@dataclass(frozen=True, slots=True)
class FoundSpan:
    """A part of a text, in characters from 0, ``end`` not included.

    Attributes
    ----------
    probability : float
        The least of its tokens' tags.
    """

    start: int
    end: int
    label: str
    probability: float
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SpanPrediction(Prediction):
    """Labelled spans of one text, from the left.

    Attributes
    ----------
    cut : int
        Tokens of the text beyond the largest length, in which nothing was looked for.
    """

    spans: tuple[FoundSpan, ...]
    cut: int

    @property
    def answer(self) -> tuple[tuple[int, int, str], ...]:
        """Places and labels of all spans."""
        return tuple((span.start, span.end, span.label) for span in self.spans)

    def fields(self, most: int) -> dict[str, Any]:
        """Return all spans."""
        names = ("start", "end", "label", "probability", "text")
        return {"spans": [{name: getattr(s, name) for name in names} for s in self.spans]}

    def words(self, most: int) -> str:
        """Return all spans."""
        return ", ".join(f"{s.label} {s.text!r} {s.probability:.3f}" for s in self.spans) or "none"


class Predicting(ABC):
    """Labels texts with a shared model of its task.

    Parameters
    ----------
    model : SharedModel
        With the adapter in place.
    max_length : int
        Tokens read of a text.
    """

    def __init__(self, model: SharedModel, max_length: int) -> None:
        self._model = model
        self._max_length = max_length

    def predict(self, texts: Sequence[str]) -> Iterator[Prediction]:
        """Yield what the model says of each text, in order."""
        for start in range(0, len(texts), _CHUNK):
            yield from self._of_chunk(texts[start : start + _CHUNK])

    @torch.no_grad()
    def _of_chunk(self, texts: Sequence[str]) -> list[Prediction]:
        # As `LearningTask.encoder` has it: the same tokens as in training.
        encoded = self._model.tokenizer(
            list(texts),
            truncation=True,
            max_length=self._max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        cut, found = tokens_cut(encoded), [Tensor()] * len(texts)
        for places, piece in by_width(self._padded(encoded["input_ids"]), _ROWS):
            rows = self._model.module(self._model.moved(piece)).float().softmax(-1).cpu()
            for place, row in zip(places.tolist(), rows, strict=True):
                found[place] = row
        return [
            self._read(
                text,
                found[place],
                encoded["offset_mapping"][place],
                encoded["special_tokens_mask"][place],
                cut[place],
            )
            for place, text in enumerate(texts)
        ]

    def _padded(self, rows: Sequence[Sequence[int]]) -> Batch:
        width = max(map(len, rows))
        pad = self._model.tokenizer.pad_token_id
        ids = [[*row, *[pad] * (width - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    @abstractmethod
    def _read(
        self,
        text: str,
        shares: Tensor,
        offsets: Sequence[tuple[int, int]],
        special: Sequence[int],
        cut: int,
    ) -> Prediction:
        """Read probabilities: (C,) of a text's labels, or (T, C) of its tokens' tags."""


class LabelPredicting(Predicting):
    """Gives each text a label."""

    def _read(
        self,
        text: str,
        shares: Tensor,
        offsets: Sequence[tuple[int, int]],
        special: Sequence[int],
        cut: int,
    ) -> LabelPrediction:
        order = shares.argsort(descending=True, stable=True).tolist()
        labels = tuple((self._model.labels[place], float(shares[place])) for place in order)
        return LabelPrediction(labels, cut)


class SpanPredicting(Predicting):
    """Finds the labelled spans of each text."""

    def _read(
        self,
        text: str,
        shares: Tensor,
        offsets: Sequence[tuple[int, int]],
        special: Sequence[int],
        cut: int,
    ) -> SpanPrediction:
        kept = [
            place
            for place, (start, end) in enumerate(offsets)
            if start < end and not special[place]
        ]
        likeliest, tags = shares.max(-1)
        spans = []
        for span in spans_of_tags([int(tags[place]) for place in kept]):
            start, end = offsets[kept[span.first]][0], offsets[kept[span.last]][1]
            # White space at the edges belongs to no span, as in training.
            inside = text[start:end]
            start += len(inside) - len(inside.lstrip())
            end -= len(inside) - len(inside.rstrip())
            if start < end:
                least = float(likeliest[kept[span.first : span.last + 1]].min())
                label = self._model.labels[span.label]
                spans.append(FoundSpan(start, end, label, least, text[start:end]))
        return SpanPrediction(tuple(spans), cut)
