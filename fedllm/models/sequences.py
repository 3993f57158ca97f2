"""Records that are several token sequences, end to end, such as the answers to one prompt.

Every token's label says which sequence it is of and what it is there: ``KINDS`` times the number
of the sequence, plus its kind. A network reads the sequences side by side, each by itself, as it
would read so many records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from fedllm.models.recomputing import run_again
from fedllm.models.transformer import Batch
from fedllm.padding import PAD_MULTIPLE

# What a token is: of the prompt or of what stands around, of an answer, of a second answer in the
# same sequence, or the word that names the better one.
AROUND, ANSWER, SECOND, WORD = range(4)
KINDS = 4
# So many are computed at once, also where a record has more: a ranking has no more answers.
AT_ONCE = 8
_IGNORED = -100


class Network(Protocol):
    """What runs a frozen part."""

    @property
    def one_vector(self) -> bool:
        """Whether it ends in one vector a sequence."""

    def prefix(self, batch: Batch) -> Tensor:
        """Run it; (S, T, H), or (S, 1, H) where it ends in one vector a sequence."""


def sequences_in(batch: Batch) -> Tensor:
    """Return how many sequences each record has, (B,) int64."""
    labels = batch["labels"]
    return torch.where(labels >= 0, labels // KINDS + 1, 0).amax(1)


def first_sequences(batch: Batch) -> Tensor:
    """Return the place of each record's first sequence among those of the batch, (B,) int64."""
    counts = sequences_in(batch)
    return counts.cumsum(0) - counts


def unpacked(batch: Batch, pad_id: int, *, one_vector: bool = False) -> Batch:
    """Return the sequences of a batch of records as a batch of their own.

    Parameters
    ----------
    batch : dict
        "input_ids" and "labels", int64 (B, W); perhaps "states", (B, W, H), or (B, K, H) where
        the frozen part ends in one vector a sequence.
    pad_id : int
        Fills short sequences up.
    one_vector : bool
        Whether it does.

    Returns
    -------
    dict
        "input_ids" and "attention_mask", int64 (S, T); "kinds", (S, T), -100 where there is no
        token; "labels", the tokens of an answer, -100 elsewhere; and "states" as there were.
    """
    places = _Places(batch)
    ids, kinds = places.apart(batch["input_ids"], pad_id), places.apart(places.kinds, _IGNORED)
    found = {
        "input_ids": ids,
        "attention_mask": (kinds != _IGNORED).long(),
        "kinds": kinds,
        "labels": torch.where(kinds == ANSWER, ids, _IGNORED),
    }
    if "states" in batch and one_vector:
        states = batch["states"]
        there = torch.arange(states.shape[1], device=states.device) < places.counts[:, None]
        found["states"] = states[there].unsqueeze(1)
    elif "states" in batch:
        found["states"] = places.apart(batch["states"], 0)
    if "canary" in batch:
        # Audits hear which records a network works on.
        found["canary"] = batch["canary"]
    return found


class FrozenPart:
    """Runs a network's frozen part on records of several sequences.

    Parameters
    ----------
    network : nn.Module
    pad_id : int
        Fills short sequences up.
    """

    def __init__(self, network: Network, pad_id: int) -> None:
        self._network = network
        self._pad_id = pad_id

    def prefix(self, batch: Batch) -> Tensor:
        """Return what the network keeps, by record: states (B, W, H), or vectors (B, K, H)."""
        places = _Places(batch)
        with torch.no_grad():
            sequences = unpacked(batch, self._pad_id)
            states = by_parts(self._network.prefix, sequences, AT_ONCE)
        if not self._network.one_vector:
            return places.together(states)
        counts = places.counts
        kept = states.new_zeros(len(counts), int(counts.max()), states.shape[2])
        there = torch.arange(kept.shape[1], device=kept.device) < counts[:, None]
        kept[there] = states[:, 0]
        return kept


class _Places:
    """Where each token of a batch of records stands among its sequences."""

    def __init__(self, batch: Batch) -> None:
        labels = batch["labels"]
        self._present = labels >= 0
        self.kinds = torch.where(self._present, labels % KINDS, _IGNORED)
        self.counts = sequences_in(batch)
        rows = (first_sequences(batch)[:, None] + labels // KINDS)[self._present]
        lengths = torch.bincount(rows, minlength=int(self.counts.sum()))
        starts = lengths.cumsum(0) - lengths
        # A record's sequences follow each other, and records too.
        self._rows = rows
        self._columns = torch.arange(len(rows), device=rows.device) - starts[rows]
        longest = int(lengths.max()) if len(lengths) else 1
        self._shape = len(lengths), -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE

    def apart(self, values: Tensor, fill: int) -> Tensor:
        """Return values (B, W, ...) of tokens by sequence, (S, T, ...)."""
        found = values.new_full((*self._shape, *values.shape[2:]), fill)
        found[self._rows, self._columns] = values[self._present]
        return found

    def together(self, values: Tensor) -> Tensor:
        """Return values (S, T, ...) of sequences by record, (B, W, ...), zero where none is."""
        found = values.new_zeros(*self._present.shape, *values.shape[2:])
        found[self._present] = values[self._rows, self._columns]
        return found


def by_parts(
    compute: Callable[[Batch], Tensor],
    sequences: Batch,
    most: int,
    trained: Sequence[Tensor] = (),
) -> Tensor:
    """Compute something of each sequence, (S, ...), of at most so many of them at a time.

    So the memory of a step does not hang on how many answers one record has. Where there are more
    sequences, each part keeps nothing for the backward pass and runs again in it (Chen et al.
    2016), and the gradients of all parts are summed up there: that of all sequences at once, but
    for rounding.

    Parameters
    ----------
    compute : callable
        Of some sequences, each by itself or in twos.
    sequences : dict
        See `unpacked`.
    most : int
        Even.
    trained : sequence of Tensor
        What has a gradient; nothing of it is asked for where left out.
    """
    size = len(sequences["input_ids"])
    if size <= most:
        return compute(sequences)
    parts = (_part(sequences, start, most) for start in range(0, size, most))
    return torch.cat([run_again(partial(compute, part), trained) for part in parts])


def _part(sequences: Batch, start: int, most: int) -> Batch:
    # Which canaries there are is said of records.
    return {
        key: value if key == "canary" else value[start : start + most]
        for key, value in sequences.items()
    }


def answer_likelihoods(network: Any, sequences: Batch) -> Tensor:
    """Return the log-likelihood of the answer in each sequence, (S,), float32, in nats.

    Parameters
    ----------
    network : TokenModel
    sequences : dict
        See `unpacked`.
    """
    losses, rows = network.token_losses(sequences)
    size = len(sequences["input_ids"])
    return losses.new_zeros(size).index_add_(0, rows, -losses)
