"""Texts that training cannot confuse with any other: canaries for the black-box audit.

A record of made-up words is made of the same few common tokens as every other, and its gradient
is mostly theirs. So each canary has tokens of its own, that no other record has ("new tokens",
Panda et al. 2025, "Privacy auditing of large language models"), drawn all alike, as a language
model does at the highest temperature: what the model learns of one tells nothing of another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedllm.data.encode import EncodedDataset
from fedllm.randomness import RandomStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def with_new_tokens(
    dataset: EncodedDataset, tokenizer: PreTrainedTokenizerBase, stream: RandomStream
) -> EncodedDataset:
    """Give each record tokens that no other record has, as far as the vocabulary goes.

    Special tokens stay where they are, but for that of unknown words. A token comes again only
    after all others.

    Parameters
    ----------
    dataset : EncodedDataset
        Records whose text does not matter.
    tokenizer : PreTrainedTokenizerBase
        Whose vocabulary.
    stream : RandomStream
        Draws the tokens.
    """
    special = np.array(sorted(tokenizer.all_special_ids), dtype=np.int32)
    # Made-up words may be unknown ones, all of them the same token.
    kept = special[special != tokenizer.unk_token_id]
    places = np.flatnonzero(~np.isin(dataset.tokens, kept))
    pool = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int32), special)
    tokens = dataset.tokens.copy()
    tokens[places] = _drawn(pool, len(places), stream)
    return replace(dataset, tokens=tokens)


def _drawn(pool: NDArray[np.int32], count: int, stream: RandomStream) -> NDArray[np.int32]:
    """Draw without putting back, from the whole pool again when it is empty."""
    rounds = -(-count // len(pool))
    parts = [pool[stream.permutation(len(pool))] for _ in range(rounds)]
    return np.concatenate([pool[:0], *parts])[:count]


def chosen(dataset: EncodedDataset, records: NDArray[np.int64]) -> EncodedDataset:
    """Return some of a data set's records, each a unit by itself."""
    starts, stops = dataset.offsets[:-1][records], dataset.offsets[1:][records]
    places = [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]

    def parts(values: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.concatenate([values[:0], *(values[place] for place in places)])

    return replace(
        dataset,
        tokens=parts(dataset.tokens),
        tags=None if dataset.tags is None else parts(dataset.tags),
        offsets=np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64),
        targets=dataset.targets[records],
        units=np.arange(len(records), dtype=np.int64),
        number_of_units=len(records),
        pairs=None if dataset.pairs is None else tuple(dataset.pairs[i] for i in records),
    )
