"""Masked language model with whole-word masking, and next-sentence prediction (BERT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.errors import CheckpointError
from fedllm.pretraining.objectives import IGNORED, Batch, Objective, summed_cross_entropy
from fedllm.pretraining.sampling import without_padding
from fedllm.pretraining.tokenizer import continues_word
from fedllm.randomness import RandomStream

MASKED_SHARE = 0.15
_MASK_TOKEN_SHARE, _RANDOM_TOKEN_SHARE = 0.8, 0.1
# [CLS] A [SEP] B [SEP]
SPECIAL_TOKENS = 3


@dataclass(frozen=True, slots=True)
class MaskedVocabulary:
    """What masking needs to know of a tokenizer."""

    cls: int
    sep: int
    mask: int
    pad: int
    ordinary: NDArray[np.int64]
    continues: NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> MaskedVocabulary:
        """Look the tokens up.

        Raises
        ------
        CheckpointError
            If the tokenizer lacks one of them.
        """
        if None in (
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.mask_token_id,
            tokenizer.pad_token_id,
        ):
            raise CheckpointError(
                "objective = 'masked' needs a tokenizer with cls, sep, mask and pad tokens",
                "leave tokenizer.path out to train one",
            )
        special = set(tokenizer.all_special_ids)
        ordinary = [i for i in range(len(tokenizer)) if i not in special]
        return cls(
            int(tokenizer.cls_token_id),
            int(tokenizer.sep_token_id),
            int(tokenizer.mask_token_id),
            int(tokenizer.pad_token_id),
            np.asarray(ordinary, dtype=np.int64),
            np.asarray(continues_word(tokenizer)),
        )


class MaskedLanguage(Objective):
    """BERT's two tasks on pairs of passages (Devlin et al. 2019).

    In half of the rows the second segment follows the first in its document, in the other
    half it is from elsewhere. Of the words, as many are chosen whole as make up 15% of the
    tokens; of their tokens 80% become the mask, 10% another token, 10% stay. The masked-LM
    head runs on the chosen positions only.
    """

    parts = ("masked_loss", "next_sentence_loss")
    measures = (*parts, "masked_accuracy", "next_sentence_accuracy")

    def __init__(self, model: PreTrainedModel, vocabulary: MaskedVocabulary, length: int) -> None:
        super().__init__(model)
        self._vocabulary = vocabulary
        self._length = length

    def batch(self, pieces: Sequence[NDArray[np.int64]], random: Sequence[RandomStream]) -> Batch:
        """Return the rows of some pairs of passages.

        Returns
        -------
        dict of Tensor
            ``input_ids``, ``attention_mask``, ``token_type_ids`` and ``labels`` (-100 where
            nothing is predicted), int64 (B, T); ``next_sentence``, int64 (B,), 0 where the
            second segment follows the first and 1 where it does not, as in `transformers`.
        """
        shape = (len(pieces), self._length)
        ids = np.full(shape, self._vocabulary.pad, dtype=np.int64)
        kinds, attention = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        unrelated = np.zeros(len(pieces), dtype=np.int64)
        for row, (piece, stream) in enumerate(zip(pieces, random, strict=True)):
            first, second, unrelated[row] = segments(piece, stream)
            tokens = self._with_special_tokens(first, second)
            count = len(tokens)
            masked, chosen = self._masked(tokens, stream)
            ids[row, :count], attention[row, :count] = masked, 1
            kinds[row, len(first) + 2 : count] = 1
            labels[row, :count][chosen] = tokens[chosen]
        arrays = {
            "input_ids": ids,
            "attention_mask": attention,
            "token_type_ids": kinds,
            "labels": labels,
            "next_sentence": unrelated,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _with_special_tokens(
        self, first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        v = self._vocabulary
        return np.concatenate([[v.cls], first, [v.sep], second, [v.sep]])

    def _masked(
        self, tokens: NDArray[np.int64], random: RandomStream
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        v = self._vocabulary
        chosen = choose_words(tokens, v, random)
        draw = random.uniform(len(tokens))
        replaced = tokens.copy()
        replaced[chosen & (draw < _MASK_TOKEN_SHARE)] = v.mask
        other = chosen & (draw >= _MASK_TOKEN_SHARE)
        other &= draw < _MASK_TOKEN_SHARE + _RANDOM_TOKEN_SHARE
        picks = random.below(len(v.ordinary), int(other.sum())).astype(np.int64)
        replaced[other] = v.ordinary[picks]
        return replaced, chosen

    def targets(self, batch: Batch) -> tuple[int, ...]:
        """Count the chosen tokens, and the pairs."""
        return int((batch["labels"] != IGNORED).sum()), len(batch["next_sentence"])

    def _scores(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return scores and right answers of the chosen tokens and of the pairs."""
        states = self.model.bert(  # type: ignore[operator]
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            token_type_ids=batch["token_type_ids"],
        )
        chosen = batch["labels"] != IGNORED
        heads: Any = self.model.cls
        scores = heads.predictions(states.last_hidden_state[chosen])
        related = heads.seq_relationship(states.pooler_output)
        return [(scores, batch["labels"][chosen]), (related, batch["next_sentence"])]

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed losses of the chosen tokens and of the pairs."""
        return torch.stack([summed_cross_entropy(*both) for both in self._scores(batch)])

    def measure(self, batch: Batch) -> Tensor:
        """Return losses and right answers, summed, and the number of targets of each."""
        scored = self._scores(batch)
        losses = [summed_cross_entropy(*both) for both in scored]
        right = [(scores.argmax(-1) == answers).sum() for scores, answers in scored]
        sums = torch.stack([*losses, *right]).double().cpu()
        return torch.stack([sums, torch.tensor(2 * self.targets(batch)).double()])


def segments(
    pair: NDArray[np.int64], random: RandomStream
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Cut a passage in two, and exchange the second part with probability one half.

    Neither its length nor where it was cut tells the second part's origin: both passages are
    cut at random, and both second parts are as long as the shorter of them.

    Parameters
    ----------
    pair : array
        int64 of shape (2, L): a passage and an unrelated one, padded.

    Returns
    -------
    (array, array, int)
        The two segments, and 1 if the second is unrelated.
    """
    passage, unrelated = without_padding(pair[0]), without_padding(pair[1])
    cut, other = (1 + int(random.below(len(p) - 1, 1)[0]) for p in (passage, unrelated))
    following, foreign = passage[cut:], unrelated[other:]
    length = min(len(following), len(foreign))
    if random.uniform(1)[0] < 0.5:
        return passage[:cut], following[:length], 0
    return passage[:cut], foreign[:length], 1


def choose_words(
    tokens: NDArray[np.int64], vocabulary: MaskedVocabulary, random: RandomStream
) -> NDArray[np.bool_]:
    """Choose whole words at random until they make up `MASKED_SHARE` of the tokens.

    A word that would exceed the share is passed over; one token at least is chosen.
    """
    ordinary = np.isin(tokens, vocabulary.ordinary)
    begins = ordinary & ~(vocabulary.continues[tokens] & np.roll(ordinary, 1))
    word = np.cumsum(begins)
    sizes = np.bincount(word[ordinary], minlength=word[-1] + 1)
    left = max(1, round(MASKED_SHARE * int(ordinary.sum())))
    picked = np.zeros(len(sizes), dtype=bool)
    order = random.permutation(int(word[-1])) + 1
    for number in order:
        if sizes[number] <= left:
            picked[number] = True
            left -= sizes[number]
    if not picked.any():
        picked[order[:1]] = True
    return ordinary & picked[word]
