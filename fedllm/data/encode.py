"""Turn records into token sequences, and sequences into padded batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.config import DataSection, Task
from fedllm.data.labels import check_distinct
from fedllm.data.records import Record, RowProblems
from fedllm.data.template import content_span, end_token_id, prompt_text, response_text
from fedllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedDataset", "encode", "label_set", "prompt_text"]

IGNORED = -100
_PAD_MULTIPLE = 8
_CHUNK_RECORDS = 2048


class _Sequence(NamedTuple):
    ids: Sequence[int]
    target: int


@dataclass(frozen=True, eq=False)
class EncodedDataset:
    """Token sequences of many records, end to end in one array.

    Attributes
    ----------
    tokens : int32 array (total,)
        All sequences, one after the other.
    offsets : int64 array (records + 1,)
        Sequence ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
    targets : int32 array (records,)
        Classification: the label's index. Otherwise: the position in the sequence from
        which tokens count for the loss.
    units : int64 array (records,)
        Index of the person each record belongs to; 0 to records - 1 without persons.
    sequence_labels : bool
        Whether ``targets`` are labels of whole sequences.
    pad_id : int
        Token that fills short sequences up.
    max_length : int
        No batch is wider than this.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]
    units: NDArray[np.int64]
    sequence_labels: bool
    pad_id: int
    max_length: int

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"EncodedDataset({len(self)} records, {self.number_of_units} units)"

    @property
    def number_of_units(self) -> int:
        """How many persons (or records, without persons) the data set protects."""
        return int(self.units.max()) + 1 if len(self.units) else 0

    def batch(self, indices: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Make one batch, padded on the right to a multiple of 8 (or to ``max_length``).

        Parameters
        ----------
        indices : int64 array (B,)
            Records of the batch; may be empty, as Poisson sampling can choose nobody.

        Returns
        -------
        dict
            "input_ids" and "attention_mask", int64 (B, T). "labels", int64: (B,) for
            classification; else (B, T), not shifted, -100 where no loss is taken.
        """
        indices = np.asarray(indices, dtype=np.int64)
        starts = self.offsets[:-1][indices]
        lengths = self.offsets[1:][indices] - starts
        position = np.arange(self._width(lengths))
        present = position < lengths[:, None]
        ids = np.full(present.shape, self.pad_id, dtype=np.int64)
        ids[present] = self.tokens[(starts[:, None] + position)[present]]
        targets = self.targets[indices].astype(np.int64)
        if self.sequence_labels:
            labels = targets
        else:
            labels = np.where(present & (position >= targets[:, None]), ids, IGNORED)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(present.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }

    def _width(self, lengths: NDArray[np.int64]) -> int:
        longest = int(lengths.max(initial=1))
        return min(-(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE, self.max_length)


def label_set(data: DataSection, test_records: Sequence[Record]) -> tuple[str, ...]:
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
        found = {r.values["label"] for r in test_records if "label" in r.values}
        labels = tuple(sorted(found))
        if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
            labels = tuple(sorted(labels, key=lambda label: (int(label), label)))
    if len(labels) < 2:
        raise DataError(
            f"the public set of labels has {len(labels)} label(s), classification needs two",
            "list them in data.labels, or give a public data.test file that has them all",
        )
    listed = data.labels is not None
    check_distinct(labels, "data.labels" if listed else data.test or "data.test", listed=listed)
    return labels


def encode(
    records: Sequence[Record],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: tuple[str, ...] = (),
) -> EncodedDataset:
    """Tokenise records for a task.

    Classification: the text with the tokenizer's special tokens, cut to ``max_length``.
    Instruction: `prompt_text`, the response, an end token; the loss counts response and
    end token. What is too long is cut so: half of ``max_length`` (or less, if the response
    is shorter) is kept for the response, and the prompt gives way to it from the left of
    its content, never of its template; then the response is cut on the right, and has no
    end token. Causal: the text with the tokenizer's special tokens and an end-of-text
    token, cut to ``max_length``; the loss counts all tokens.

    Parameters
    ----------
    records : sequence of Record
        May be empty.
    tokenizer : PreTrainedTokenizerBase
        A fast tokenizer (the kind with character offsets).
    max_length : int
        Most tokens of one sequence.
    labels : tuple of str
        The public label set (classification).

    Raises
    ------
    DataError
        If a label is not in ``labels``, or a record has no token to learn from: names up
        to five records.
    ConfigError
        If the tokenizer is not a fast one, lacks an end token that the task needs, or
        ``max_length`` leaves no room for a response.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "the model's tokenizer is a slow one", "use a checkpoint that has a tokenizer.json"
        )
    problems = RowProblems()
    chunks: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
    lengths: list[int] = []
    targets: list[int] = []
    for start in range(0, len(records), _CHUNK_RECORDS):
        chunk = records[start : start + _CHUNK_RECORDS]
        sequences = list(_sequences(chunk, task, tokenizer, max_length, labels))
        for record, sequence in zip(chunk, sequences, strict=True):
            if problem := _problem(task, sequence, len(labels)):
                problems.add(record.origin, *problem)
        chunks.append(np.fromiter(chain.from_iterable(s.ids for s in sequences), dtype=np.int32))
        lengths.extend(len(s.ids) for s in sequences)
        targets.extend(s.target for s in sequences)
    problems.raise_if_any()
    return EncodedDataset(
        tokens=np.concatenate(chunks),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        targets=np.asarray(targets, dtype=np.int32),
        units=_units(records),
        sequence_labels=task == "classification",
        pad_id=_pad_id(tokenizer),
        max_length=max_length,
    )


def _problem(task: Task, sequence: _Sequence, label_count: int) -> tuple[str, str] | None:
    """Say why a sequence cannot be learned from, and what to do; None if it can."""
    if task == "classification" and sequence.target < 0:
        return (
            f"its label is not one of the {label_count} public labels",
            "correct the label (white space, case and Unicode form count), or add it to "
            "data.labels",
        )
    # The loss of a causal sequence starts at its second token.
    if len(sequence.ids) < (2 if task == "causal" else 1):
        what = "response" if task == "instruction" else "text"
        return f"its {what} has no tokens to learn from", "take the record out of the source"
    return None


def _sequences(
    records: Sequence[Record],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: tuple[str, ...],
) -> Iterator[_Sequence]:
    if task == "instruction":
        yield from _instructions(records, tokenizer, max_length)
        return
    texts = [record.values["text"] for record in records]
    encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    if task == "classification":
        number_of = {label: number for number, label in enumerate(labels)}
        for record, ids in zip(records, encoded, strict=True):
            yield _Sequence(ids, number_of.get(record.values["label"], -1))
        return
    end = tokenizer.eos_token_id
    for ids in encoded:
        ended = end is None or ids[-1:] == [end] or len(ids) >= max_length
        yield _Sequence(ids if ended else [*ids, end], 0)


def _instructions(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[_Sequence]:
    end = end_token_id(tokenizer)
    prompts = [prompt_text(tokenizer, record.values["prompt"]) for record in records]
    responses = [response_text(tokenizer, record.values["response"]) for record in records]
    prompt_tokens = _token_ids(tokenizer, prompts)
    response_tokens = _token_ids(tokenizer, responses)
    for record, text, before, after in zip(
        records, prompts, prompt_tokens, response_tokens, strict=True
    ):
        if not after or not record.values["response"].strip():
            yield _Sequence([], 0)
            continue
        answer = [*after, end]
        budget = max_length - min(len(answer), (max_length + 1) // 2)
        shown = before if len(before) <= budget else _shortened(tokenizer, text, budget)
        if len(shown) >= max_length:
            raise ConfigError(
                f"model.max_length = {max_length} leaves no room for a response after the "
                f"prompt's template of {len(shown)} tokens",
                "raise model.max_length",
            )
        yield _Sequence([*shown, *answer[: max_length - len(shown)]], len(shown))


def _shortened(tokenizer: PreTrainedTokenizerBase, text: str, budget: int) -> list[int]:
    """Drop tokens from the left of the prompt's content, and none of the template's."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    first, last = content_span(tokenizer, text)
    inside = [
        number
        for number, (start, stop) in enumerate(encoded["offset_mapping"])
        if first <= start < stop <= last
    ]
    dropped = set(inside[: len(encoded["input_ids"]) - budget])
    return [t for number, t in enumerate(encoded["input_ids"]) if number not in dropped]


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # Not verbose: too long sequences are cut here, the tokenizer need not warn of them.
    return list(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])


def _units(records: Sequence[Record]) -> NDArray[np.int64]:
    named = sum(record.unit is not None for record in records)
    if named == 0:
        return np.arange(len(records), dtype=np.int64)
    if named < len(records):
        raise DataError(
            f"{len(records) - named} of {len(records)} records name no person",
            "read all of them with the same data.unit",
        )
    numbers: dict[str | None, int] = {}
    return np.asarray([numbers.setdefault(r.unit, len(numbers)) for r in records], dtype=np.int64)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    # Padding is masked, so any token of the vocabulary serves.
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
