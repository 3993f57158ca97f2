"""Put token sequences of records end to end, and turn them into padded batches.

What a record's sequence is, and what of it a model learns, is for an `Encoder` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.data.records import Record, RowProblems
from fedllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
_PAD_MULTIPLE = 8
_CHUNK_RECORDS = 2048

Integers = NDArray[np.int64]
# From token ids (B, T), which of them are no padding (B, T), and targets (B,) to labels.
Labelling = Callable[[Integers, NDArray[np.bool_], Integers], Integers]


def labels_of_sequences(ids: Integers, present: NDArray[np.bool_], targets: Integers) -> Integers:
    """Return ``targets`` as they are: each is the label of a whole sequence, (B,)."""
    return targets


def labels_of_tokens(ids: Integers, present: NDArray[np.bool_], targets: Integers) -> Integers:
    """Return the tokens as their own labels, (B, T), -100 before position ``targets`` and after."""
    counted = present & (np.arange(ids.shape[1]) >= targets[:, None])
    return np.where(counted, ids, IGNORED)


class TokenSequence(NamedTuple):
    """A record's tokens, and a number that a `Labelling` makes labels of."""

    ids: Sequence[int]
    target: int


class Encoder(Protocol):
    """What a record becomes."""

    @property
    def labelling(self) -> Labelling:
        """What a batch says that a model should learn."""

    def sequences(self, records: Sequence[Record]) -> Iterator[TokenSequence]:
        """Tokenise records, one sequence each."""

    def problem(self, sequence: TokenSequence) -> tuple[str, str] | None:
        """Say why a sequence cannot be learned from, and what to do; None if it can.

        Neither text may hold a value of the record.
        """


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
        A number for each sequence, from which ``labelling`` makes a batch's labels.
    units : int64 array (records,)
        Index of the person each record belongs to; 0 to records - 1 without persons.
    labelling : callable
        Makes a batch's labels: `labels_of_sequences`, `labels_of_tokens` or another.
    pad_id : int
        Token that fills short sequences up.
    max_length : int
        No batch is wider than this.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]
    units: NDArray[np.int64]
    labelling: Labelling
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
            "input_ids" and "attention_mask", int64 (B, T), and "labels", int64: (B,) for
            labels of sequences; (B, T), not shifted, -100 where no loss is taken, for labels
            of tokens.
        """
        indices = np.asarray(indices, dtype=np.int64)
        starts = self.offsets[:-1][indices]
        lengths = self.offsets[1:][indices] - starts
        position = np.arange(self._width(lengths))
        present = position < lengths[:, None]
        ids = np.full(present.shape, self.pad_id, dtype=np.int64)
        ids[present] = self.tokens[(starts[:, None] + position)[present]]
        targets = self.targets[indices].astype(np.int64)
        labels = self.labelling(ids, present, targets)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(present.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }

    def _width(self, lengths: NDArray[np.int64]) -> int:
        longest = int(lengths.max(initial=1))
        return min(-(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE, self.max_length)


def encode(
    records: Sequence[Record], encoder: Encoder, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedDataset:
    """Tokenise records.

    Parameters
    ----------
    records : sequence of Record
        May be empty.
    encoder : Encoder
        Of the task.
    tokenizer : PreTrainedTokenizerBase
        A fast tokenizer (the kind with character offsets).
    max_length : int
        Most tokens of one sequence; ``encoder`` keeps to it.

    Raises
    ------
    DataError
        If a record cannot be learned from: names up to five records.
    ConfigError
        If the tokenizer is not a fast one, or ``encoder`` cannot work with it.
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
        sequences = list(encoder.sequences(chunk))
        for record, sequence in zip(chunk, sequences, strict=True):
            if problem := encoder.problem(sequence):
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
        labelling=encoder.labelling,
        pad_id=_pad_id(tokenizer),
        max_length=max_length,
    )


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
