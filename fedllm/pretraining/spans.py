"""Span corruption for encoder-decoders (T5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.errors import CheckpointError
from fedllm.pretraining.objectives import IGNORED, Batch, Objective, summed_cross_entropy
from fedllm.pretraining.sampling import without_padding
from fedllm.pretraining.tokenizer import SENTINELS
from fedllm.randomness import RandomStream

CORRUPTED_SHARE = 0.15
MEAN_SPAN_TOKENS = 3


def sentinel_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that stand for removed spans, in order.

    Raises
    ------
    CheckpointError
        If the tokenizer has none.
    """
    vocabulary = tokenizer.get_vocab()
    for pattern in ("<|extra_{}|>", "<extra_id_{}>"):
        names = [pattern.format(i) for i in range(SENTINELS)]
        if all(name in vocabulary for name in names):
            return [vocabulary[name] for name in names]
    raise CheckpointError(
        "objective = 'span' needs a tokenizer with sentinel tokens",
        "leave tokenizer.path out to train one",
    )


class SpanCorruption(Objective):
    """Write the removed spans of a passage (Raffel et al. 2020, section 3.1.4).

    15% of the tokens are removed in spans of three on average. The encoder sees a sentinel
    in place of each span; the decoder writes each sentinel and what stood there, then the
    end.
    """

    parts = measures = ("loss",)

    def __init__(
        self,
        model: PreTrainedModel,
        sentinels: Sequence[int],
        end: int,
        length: int,
    ) -> None:
        super().__init__(model)
        self._sentinels = np.asarray(sentinels, dtype=np.int64)
        self._end = end
        self._length = length
        self._start = int(model.config.decoder_start_token_id)

    def batch(self, pieces: Sequence[NDArray[np.int64]], random: Sequence[RandomStream]) -> Batch:
        """Return corrupted passages and what was removed.

        Returns
        -------
        dict of Tensor
            int64: ``input_ids`` and ``attention_mask`` (B, T); ``decoder_input_ids`` and
            ``labels`` (B, U), where the first are the second shifted right by one, and -100
            stands where nothing is predicted.
        """
        pairs = [self._corrupt(p, r) for p, r in zip(pieces, random, strict=True)]
        longest = max(len(removed) for _, removed in pairs)
        ids = np.full((len(pairs), self._length), self._start, dtype=np.int64)
        attention = np.zeros_like(ids)
        labels = np.full((len(pairs), longest), IGNORED, dtype=np.int64)
        inputs = np.full_like(labels, self._start)
        for row, (kept, removed) in enumerate(pairs):
            ids[row, : len(kept)], attention[row, : len(kept)] = kept, 1
            labels[row, : len(removed)] = removed
            inputs[row, 1 : len(removed)] = removed[:-1]
        arrays = {
            "input_ids": ids,
            "attention_mask": attention,
            "decoder_input_ids": inputs,
            "labels": labels,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _corrupt(
        self, piece: NDArray[np.int64], random: RandomStream
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tokens = without_padding(piece)
        kept, removed = span_lengths(len(tokens), len(self._sentinels), random)
        left: list[NDArray[np.int64]] = []
        right: list[NDArray[np.int64]] = []
        start = 0
        for number, (keep, remove) in enumerate(zip(kept, removed, strict=True)):
            sentinel = self._sentinels[number : number + 1]
            left += [tokens[start : start + keep], sentinel]
            right += [sentinel, tokens[start + keep : start + keep + remove]]
            start += keep + remove
        end = np.asarray([self._end], dtype=np.int64)
        return np.concatenate([*left, end]), np.concatenate([*right, end])

    def targets(self, batch: Batch) -> tuple[int, ...]:
        """Count the tokens that the decoder writes."""
        return (int((batch["labels"] != IGNORED).sum()),)

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed loss of what the decoder writes."""
        logits = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=batch["decoder_input_ids"],
            use_cache=False,
        ).logits
        return torch.stack([summed_cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())])


def span_lengths(
    tokens: int, most: int, random: RandomStream
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide a passage into stretches that are kept and spans that are removed, in turn.

    Returns
    -------
    (array, array)
        Lengths of both, each at least 1; together they sum to ``tokens``.
    """
    removed = max(1, round(CORRUPTED_SHARE * tokens))
    spans = min(most, removed, max(1, round(removed / MEAN_SPAN_TOKENS)))
    return _composition(tokens - removed, spans, random), _composition(removed, spans, random)


def _composition(total: int, parts: int, random: RandomStream) -> NDArray[np.int64]:
    """Return ``parts`` positive numbers that sum to ``total``, all such equally likely."""
    cuts = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
