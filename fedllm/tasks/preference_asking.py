"""Ask a model that learned preferences: to write, or how good answers are."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedllm.config import DataSection
from fedllm.data.columns import Column, MissingColumnError
from fedllm.data.encode import EncodedDataset, encode
from fedllm.data.rankings import Ranking
from fedllm.data.records import Record
from fedllm.data.sources import read_records
from fedllm.models.pieces import by_width
from fedllm.models.sequences import unpacked
from fedllm.tasks.answering import Answering
from fedllm.tasks.preference_encoding import Answers, Choices
from fedllm.tasks.preference_losses import margins, scores_of

if TYPE_CHECKING:
    from fedllm.models.shared import SharedModel

# Sequences, or events, that are computed at once.
_ROWS = 16
_UNWANTED = "I do not know"


class PreferredAnswering(Answering):
    """A model that was taught which answers are preferred."""

    @staticmethod
    def record(prompt: str, response: str) -> Record:
        """Return the record in which a response is preferred to saying nothing."""
        ranking = Ranking(prompt, "", (response, _UNWANTED), ((0, 1),))
        return Record(ranking.written(), None, None, "made up")


class Judging(ABC):
    """Says how good answers are.

    Parameters
    ----------
    model : SharedModel
        With the adapter in place.
    max_length : int
        Tokens read of a prompt with its answers.
    """

    def __init__(self, model: SharedModel, max_length: int) -> None:
        self._model = model
        self._max_length = max_length

    @abstractmethod
    def judge(self, asked: Sequence[tuple[str, str, Sequence[str]]]) -> list[list[float]]:
        """Return the scores of the answers of each (prompt, context, answers).

        Only differences between answers to one prompt have a meaning.

        Raises
        ------
        DataError
            If answers cannot be told apart.
        ConfigError
            If there is no room for them.
        """


def read_answers(location: str, columns: Mapping[str, Column], data: DataSection) -> list[Record]:
    """Read rows with a prompt, perhaps a context and an id, and two to eight answers.

    Parameters
    ----------
    columns : mapping of str to Column
        The task's.

    Raises
    ------
    DataError
        See `fedllm.data.sources.read_records`.
    """
    wanted = {role: columns[role] for role in ("prompt", "context", "answers")}
    wanted["answers"] = wanted["answers"]._replace(needed=True)
    nobodys = data.model_copy(update={"unit": None, "site": None, "group": None, "test": None})
    try:
        return read_records(location, nobodys, wanted | {"id": Column("id", "name", needed=False)})
    except MissingColumnError as error:
        needed, more = (
            [column.name for column in wanted.values() if column.needed is must]
            for must in (True, False)
        )
        raise error.of_a_file(needed, [*more, "id"]) from None


def asked_of(record: Record) -> tuple[str, str, tuple[str, ...]]:
    """Return prompt, context and answers of what `read_answers` read."""
    values = record.values
    return values["prompt"], values.get("context", ""), tuple(json.loads(values["answers"]))


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Return the rank of each answer, 1 for the best; equal scores are tied."""
    return [1 + sum(other > score for other in scores) for score in scores]


class Rewarding(Judging):
    """Gives each answer its reward, by itself."""

    def judge(self, asked: Sequence[tuple[str, str, Sequence[str]]]) -> list[list[float]]:
        """Return rewards; see the base class."""
        alone = [(prompt, context, answer) for prompt, context, many in asked for answer in many]
        left = iter(self.rewards(alone).tolist())
        return [[next(left) for _ in many] for _, _, many in asked]

    @torch.no_grad()
    def rewards(self, asked: Sequence[tuple[str, str, str]]) -> Tensor:
        """Return the reward of each (prompt, context, answer), (N,), float32, on the processor."""
        model = self._model
        encoder = Answers(model.tokenizer, self._max_length, blank=True)
        records = [_record(prompt, context, (answer,), ()) for prompt, context, answer in asked]
        dataset = encode(records, encoder, model.tokenizer, self._max_length)
        found = torch.zeros(len(asked))
        for start in range(0, len(asked), 16 * _ROWS):
            rows = np.arange(start, min(start + 16 * _ROWS, len(asked)))
            for places, piece in by_width(dataset.batch(rows), _ROWS):
                moved = model.moved(piece)
                scores = scores_of(model, unpacked(moved, model.pad_id), moved)
                found[start + places] = scores.float().cpu()
        return found


class Selecting(Judging):
    """Holds each answer against every other: its score is the mean margin."""

    @torch.no_grad()
    def judge(self, asked: Sequence[tuple[str, str, Sequence[str]]]) -> list[list[float]]:
        """Return mean margins over all other answers; see the base class."""
        records = [
            _record(prompt, context, answers, tuple(combinations(range(len(answers)), 2)))
            for prompt, context, answers in asked
        ]
        tokenizer = self._model.tokenizer
        reading = Choices(tokenizer, self._max_length)
        dataset = encode(records, reading, tokenizer, self._max_length)
        rankings = [Ranking.read_back(record.values) for record in records]
        return [
            self._of_one(dataset, row, len(ranking.answers), reading.told_apart(ranking))
            for row, ranking in enumerate(rankings)
        ]

    def _of_one(
        self, dataset: EncodedDataset, row: int, answers: int, pairs: Sequence[tuple[int, int]]
    ) -> list[float]:
        found, _ = margins(self._model, self._model.moved(dataset.batch(np.array([row]))))
        scores, others = [0.0] * answers, max(answers - 1, 1)
        # A pair that is the same in what is read of it has no margin, and adds nothing.
        for (one, other), margin in zip(pairs, found.tolist(), strict=True):
            scores[one] += margin / others
            scores[other] -= margin / others
        return scores


def _record(
    prompt: str, context: str, answers: Sequence[str], pairs: tuple[tuple[int, int], ...]
) -> Record:
    return Record(Ranking(prompt, context, tuple(answers), pairs).written(), None, None, "asked")
