"""A file of public texts as a model's tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from fedllm.data.asked import read_asked
from fedllm.errors import DataError

Tokens = tuple[int, ...]
_CHUNK = 512


def read_texts(
    location: str, column: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Tokens]:
    """Read a file's texts as tokens.

    Parameters
    ----------
    location, column
        As in `read_lines`.
    max_length : int
        Tokens that are read of a text.

    Raises
    ------
    DataError
        As `read_lines` and `tokens_of`.
    """
    return tokens_of(read_lines(location, column), location, tokenizer, max_length)


def read_lines(location: str, column: str) -> list[str]:
    """Read a file's texts.

    Parameters
    ----------
    location : str
        JSON Lines, CSV or Parquet with ``column``, or plain text, one a line.

    Raises
    ------
    DataError
        As `fedllm.data.asked.read_asked`.
    """
    return [one.text for one in read_asked(location, column, sys.stdin.buffer)]


def tokens_of(
    texts: Sequence[str], location: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Tokens]:
    """Return the tokens of texts that have two at least.

    Parameters
    ----------
    location : str
        Where they were read.

    Raises
    ------
    DataError
        If no text has two tokens.
    """
    found: list[Tokens] = []
    for start in range(0, len(texts), _CHUNK):
        part = list(texts[start : start + _CHUNK])
        encoded = tokenizer(part, truncation=True, max_length=max_length)
        # One token says nothing of what comes next.
        found += [
            tuple(ids) for ids in cast("list[list[int]]", encoded["input_ids"]) if len(ids) > 1
        ]
    if not found:
        raise DataError(f"{location} holds no text of two tokens", "give a file of whole texts")
    return found
