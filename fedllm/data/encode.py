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
from fedllm.errors import STOPPING, ConfigError, DataError
from fedllm.memory import lacks_memory
from fedllm.padding import PAD_MULTIPLE

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

IGNORED = -100

_CHUNK_RECORDS = 2048

Integers = NDArray[np.int64]
# Why, which may be worded later, and what to do.
Problem = tuple[str | Callable[[], str], str]
# From token ids (B, T), which of them are no padding (B, T), and targets (B,) to labels. Where
# tokens have tags, these are the targets, (B, T), -100 where there is no token.
Labelling = Callable[[Integers, NDArray[np.bool_], Integers], Integers]


def labels_of_sequences(ids: Integers, present: NDArray[np.bool_], targets: Integers) -> Integers:
    """Return ``targets`` as they are: each is the label of a whole sequence, (B,)."""
    return targets


def labels_as_given(ids: Integers, present: NDArray[np.bool_], targets: Integers) -> Integers:
    """Return ``targets`` as they are: each is the label of a token, (B, T)."""
    return targets


def labels_of_tokens(ids: Integers, present: NDArray[np.bool_], targets: Integers) -> Integers:
    """Return the tokens as their own labels, (B, T), -100 before position ``targets`` and after."""
    counted = present & (np.arange(ids.shape[1]) >= targets[:, None])
    return np.where(counted, ids, IGNORED)


class TokenSequence(NamedTuple):
    """A record's tokens, and a number that a `Labelling` makes labels of.

    ``tags`` has one number for each token, in a task that says it of each; else it is empty.
    ``cut`` tokens more would belong to it, but for the largest length. In a task whose records
    are several sequences, end to end, ``pairs`` says which of them are compared.
    """

    ids: Sequence[int]
    target: int
    tags: Sequence[int] = ()
    cut: int = 0
    pairs: Sequence[tuple[int, int]] | None = None


def tokens_cut(encoded: BatchEncoding) -> list[int]:
    """Return how many tokens of each text were cut off; special ones do not count."""
    return [
        sum(part.special_tokens_mask.count(0) for part in one.overflowing)
        for one in encoded.encodings or ()
    ]


class Encoder(Protocol):
    """What a record becomes."""

    @property
    def labelling(self) -> Labelling:
        """What a batch says that a model should learn."""

    def sequences(self, records: Sequence[Record]) -> Iterator[TokenSequence]:
        """Tokenise records, one sequence each."""

    def problem(self, sequence: TokenSequence, record: Record) -> Problem | None:
        """Say why a record's sequence cannot be learned from, and what to do; None if it can.

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
        A number for each sequence, from which ``labelling`` makes a batch's labels, if there are
        no tags.
    units : int64 array (records,)
        Index of the person each record belongs to; of the record itself without persons.
    number_of_units : int
        How many persons (or records, without persons) the data set protects. Units none of
        whose records can be learned from count: they are empty.
    labelling : callable
        Makes a batch's labels: `labels_of_sequences`, `labels_of_tokens`, `labels_as_given` or
        another.
    pad_id : int
        Token that fills short sequences up.
    max_length : int
        No batch is wider than this.
    tags : int32 array (total,), optional
        A number for each token, from which ``labelling`` makes a batch's labels.
    cut_records, cut_tokens : int
        How many records were longer than ``max_length``, and by how many tokens altogether.
    groups : tuple of str or None
        What each record is of, where it names it; empty if none does.
    pairs : tuple of int64 array (M, 2), optional
        Where a record is several sequences, end to end: which of them are compared, of each
        record; the one that should be first comes first.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]
    units: NDArray[np.int64]
    number_of_units: int
    labelling: Labelling
    pad_id: int
    max_length: int
    tags: NDArray[np.int32] | None = None
    cut_records: int = 0
    cut_tokens: int = 0
    groups: tuple[str | None, ...] = ()
    pairs: tuple[Integers, ...] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"EncodedDataset({len(self)} records, {self.number_of_units} units)"

    @property
    def cut_off(self) -> str:
        """Say how much of the texts was cut off; empty where nothing was."""
        if not self.cut_records:
            return ""
        share = self.cut_tokens / (self.cut_tokens + len(self.tokens))
        return (
            f"{self.cut_records} of {len(self)} records are longer than model.max_length = "
            f"{self.max_length} tokens: {share:.1%} of all tokens are cut off. Of these "
            "records the model reads the beginnings, which is enough for many tasks; a larger "
            "model.max_length takes more time and memory"
        )

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
            of tokens. And "pairs", int64 (B, M, 2), -1 where a record has fewer, if there are.
        """
        indices = np.asarray(indices, dtype=np.int64)
        starts = self.offsets[:-1][indices]
        lengths = self.offsets[1:][indices] - starts
        position = np.arange(self._width(lengths))
        present = position < lengths[:, None]
        ids = np.full(present.shape, self.pad_id, dtype=np.int64)
        places = (starts[:, None] + position)[present]
        ids[present] = self.tokens[places]
        targets = self.targets[indices].astype(np.int64)
        if self.tags is not None:
            targets = np.full(present.shape, IGNORED, dtype=np.int64)
            targets[present] = self.tags[places]
        labels = self.labelling(ids, present, targets)
        found = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(present.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }
        if self.pairs is not None:
            found["pairs"] = torch.from_numpy(_filled_up([self.pairs[i] for i in indices]))
        return found

    def _width(self, lengths: NDArray[np.int64]) -> int:
        longest = int(lengths.max(initial=1))
        whole = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
        # Several sequences may be longer together than each may be.
        return min(whole, max(self.max_length, longest))


def _filled_up(pairs: Sequence[Integers]) -> Integers:
    most = max((len(own) for own in pairs), default=0)
    filled = np.full((len(pairs), most, 2), -1, dtype=np.int64)
    for row, own in zip(filled, pairs, strict=True):
        row[: len(own)] = own
    return filled


def encode(
    records: Sequence[Record],
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    left_out: RowProblems | None = None,
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
    left_out : RowProblems, optional
        Where given, records that cannot be learned from are noted here and left out; their
        units stay. A site does so, because a refusal would tell of a record.

    Raises
    ------
    DataError
        If a record cannot be learned from, and ``left_out`` is not given: names up to five
        records.
    ConfigError
        If the tokenizer is not a fast one, or ``encoder`` cannot work with it.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "the model's tokenizer is a slow one", "use a checkpoint that has a tokenizer.json"
        )
    problems = RowProblems() if left_out is None else left_out
    units = _units(records, strict=left_out is None)
    chunks: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
    lengths: list[int] = []
    targets: list[int] = []
    tags = [np.empty(0, dtype=np.int32)]
    pairs: list[Integers] = []
    kept: list[int] = []
    cut: list[int] = []
    for start in range(0, len(records), _CHUNK_RECORDS):
        chunk = records[start : start + _CHUNK_RECORDS]
        good: list[TokenSequence] = []
        for place, sequence in enumerate(_tokenised(chunk, encoder, problems, left_out is None)):
            if sequence is None:
                continue
            if problem := encoder.problem(sequence, chunk[place]):
                problems.add(chunk[place].where, *problem)
                continue
            kept.append(start + place)
            good.append(sequence)
        chunks.append(np.fromiter(chain.from_iterable(s.ids for s in good), dtype=np.int32))
        tags.append(np.fromiter(chain.from_iterable(s.tags for s in good), dtype=np.int32))
        lengths.extend(len(s.ids) for s in good)
        targets.extend(s.target for s in good)
        cut.extend(s.cut for s in good if s.cut)
        pairs.extend(np.array(s.pairs).reshape(-1, 2) for s in good if s.pairs is not None)
    if left_out is None:
        problems.raise_if_any()
    return EncodedDataset(
        tokens=np.concatenate(chunks),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        targets=np.asarray(targets, dtype=np.int32),
        units=units[kept],
        number_of_units=int(units.max(initial=-1)) + 1,
        labelling=encoder.labelling,
        pad_id=_pad_id(tokenizer),
        max_length=max_length,
        tags=np.concatenate(tags) if encoder.labelling is labels_as_given else None,
        cut_records=len(cut),
        cut_tokens=sum(cut),
        groups=_groups([records[i] for i in kept]),
        pairs=tuple(pairs) if encoder.labelling is labels_as_given and pairs else None,
    )


def _groups(records: Sequence[Record]) -> tuple[str | None, ...]:
    found = tuple(record.group for record in records)
    return found if any(group is not None for group in found) else ()


def _tokenised(
    chunk: Sequence[Record], encoder: Encoder, problems: RowProblems, strict: bool
) -> list[TokenSequence | None]:
    """Tokenise some records at once; one by one, if that breaks off and may not, to find out why.

    None stands for a record at which a library gave up. Its words may quote the record. For a
    lack of memory no record is left out: it need not be the record's doing.
    """
    try:
        return list(encoder.sequences(chunk))
    except STOPPING:
        raise
    except BaseException as error:
        if strict:
            raise
        if len(chunk) > 1:
            return [
                sequence
                for record in chunk
                for sequence in _tokenised([record], encoder, problems, strict)
            ]
        if lacks_memory(error):
            raise
        kind = type(error).__name__
        problems.add(chunk[0].where, f"tokenising broke off ({kind})", "take the record out")
        return [None]


def _units(records: Sequence[Record], strict: bool) -> NDArray[np.int64]:
    """Number the units of records; a record that names none is one by itself."""
    nameless = sum(record.unit is None for record in records)
    if strict and 0 < nameless < len(records):
        raise DataError(
            f"{nameless} of {len(records)} records name no person",
            "read all of them with the same data.unit",
        )
    numbers: dict[str | int, int] = {}
    keys = (place if r.unit is None else r.unit for place, r in enumerate(records))
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    # Padding is masked, so any token of the vocabulary serves.
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
