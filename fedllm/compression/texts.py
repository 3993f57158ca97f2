"""Public texts by which it is seen what matters in a model, and on which it is taught."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from fedllm.compression.linears import Batch
from fedllm.data.asked import read_asked
from fedllm.errors import DataError
from fedllm.randomness import RandomStream

Tokens = tuple[int, ...]
_CHUNK = 512


def read_texts(
    location: str, column: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Tokens]:
    """Read a file's texts as tokens.

    Parameters
    ----------
    location : str
        JSON Lines, CSV or Parquet with ``column``, or plain text, one a line.
    max_length : int
        Tokens that are read of a text.

    Raises
    ------
    DataError
        As `fedllm.data.asked.read_asked`; or if no text has two tokens.
    """
    texts = [one.text for one in read_asked(location, column, sys.stdin.buffer)]
    found: list[Tokens] = []
    for start in range(0, len(texts), _CHUNK):
        encoded = tokenizer(texts[start : start + _CHUNK], truncation=True, max_length=max_length)
        # One token says nothing of what comes next.
        found += [
            tuple(ids) for ids in cast("list[list[int]]", encoded["input_ids"]) if len(ids) > 1
        ]
    if not found:
        raise DataError(f"{location} holds no text of two tokens", "give a file of whole texts")
    return found


def single(texts: Sequence[Tokens], most: int) -> list[Batch]:
    """Return texts by themselves, so that there is no padding: at most so many, evenly drawn."""
    step = max(1, len(texts) // most)
    return [padded([text], 0) for text in texts[::step][:most]]


def endless(texts: Sequence[Tokens], size: int, pad: int, stream: RandomStream) -> Iterator[Batch]:
    """Yield batches for ever; in each pass over the texts every one comes once, in another order.

    Parameters
    ----------
    size : int
        Texts of a batch; fewer where there are not as many.
    pad : int
        The padding token.
    """
    size = min(size, len(texts))
    while True:
        order = stream.permutation(len(texts))
        for start in range(0, len(texts) - size + 1, size):
            yield padded([texts[place] for place in order[start : start + size]], pad)


def padded(texts: Sequence[Tokens], pad: int) -> Batch:
    """Return texts as one batch, filled up on the right."""
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), pad)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}
