"""A token compared with some words and not with all: importance sampling of the softmax.

Most of a small model's work on a large vocabulary is the head's: Gemma's 262,144 words cost three
quarters of a record's gradient. What all words but the right one add to a loss is a sum, and a sum
can be estimated from some of its terms, each divided by the chance with which it was drawn (Bengio
and Senécal 2008; Jean et al. 2015). A word that the model often expects is always there, others
by chance, and a token's own word always and with its full weight.

Nothing of this depends on a record. Chances come from what the model writes by itself; one draw of
words serves all records of a round. So a record's gradient is as ever a function of the record
and of what is public, and clipping bounds it. Drawing together with the words of other records of
a batch, as published ways do, would let a record change others' gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedllm.errors import ConfigError
from fedllm.randomness import RandomStream

if TYPE_CHECKING:
    from fedllm.models.shared import SharedModel

# What the model writes by itself: as many texts, as many tokens of each.
_TEXTS, _TOKENS = 16, 64
# In mean shares of all words.
_LEAST_SHARE = 0.05
_TRIED = 2
# Rounding of bfloat16, of sums over a wide state.
_CLOSE = 0.02


@dataclass(frozen=True, eq=False)
class Words:
    """A draw of words.

    Attributes
    ----------
    ids : Tensor
        (K,), int64, rising.
    weights : Tensor
        (K,), float32: logarithm of one over the chance with which each was drawn.
    """

    ids: Tensor
    weights: Tensor

    def places(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return where tokens (N,) stand among the words, and which words are not among them.

        Returns
        -------
        places : Tensor
            (N,), int64; from K on in what is returned beside it.
        others : Tensor
            (E,), int64, rising.
        """
        place = torch.searchsorted(self.ids, targets).clamp(max=len(self.ids) - 1)
        known = self.ids[place] == targets
        others, which = torch.unique(targets[~known], return_inverse=True)
        place[~known] = len(self.ids) + which
        return place, others


class SampledWords:
    """Draws words for a model, and lets its losses compare with these alone.

    Parameters
    ----------
    model : SharedModel
        A decoder with its own head.
    """

    def __init__(self, model: SharedModel) -> None:
        self._model = model

    @contextmanager
    def drawn(self, expected: int | None, stream: RandomStream) -> Iterator[None]:
        """Inside, losses of tokens compare with as many words as are expected, drawn now.

        Parameters
        ----------
        expected : int, optional
            Mean number of words of a draw. None, or as many as there are: losses compare with all.
        stream : RandomStream
            Where the draw comes from; need not be secret.

        Raises
        ------
        ConfigError
            If the model is no decoder, or does more to a word's logit than to scale it or cut it
            off.
        """
        module: Any = self._model.module
        if expected is None or expected >= len(module.backbone.get_output_embeddings().weight):
            yield
            return
        chances = chances_of(self._expected, expected)
        drawn = stream.uniform(len(chances)) < chances
        place = self._model.device
        words = Words(
            torch.tensor(np.flatnonzero(drawn), device=place),
            torch.tensor(-np.log(chances[drawn]), dtype=torch.float32, device=place),
        )
        with module.readout.among(words):
            yield

    @cached_property
    def _expected(self) -> NDArray[np.float64]:
        """How often the untrained model expects each word, (V,), along texts that it writes.

        Raises
        ------
        ConfigError
            See `drawn`; or if it writes nothing, or gives no number.
        """
        _require_plain_head(self._model)
        # What an adapter makes of it would stay for all later ones, also of one that has diverged.
        tensors = self._model.tensors
        with self._model.unchanged():
            self._model.put(tensors, self._model.untrained(tensors))
            shares = self._shares()
        if not shares.sum() > 0:
            raise ConfigError(
                "training.sampled_words: the base model writes nothing by itself, from which it "
                "could be told what words it expects",
                "leave training.sampled_words out, or take another base model",
            )
        return (shares / shares.sum()).double().numpy()

    def _shares(self) -> Tensor:
        module: Any = self._model.module
        shares = torch.zeros(0)
        with torch.no_grad():
            for ids in self._written():
                batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
                states, _, _ = module.counted(self._model.moved(batch))
                for piece in states.split(module.readout.tokens_at_once):
                    found = module.readout.logits(piece).float().softmax(-1).sum(0).cpu()
                    shares = found if not len(shares) else shares + found
        return shares

    def _written(self) -> list[Tensor]:
        """Return texts (1, T) that the model draws from itself, the same each time."""
        from fedllm.models.drawing import Sampling
        from fedllm.models.generation import Generator, Writing

        tokenizer, network = self._model.tokenizer, self._model.module.backbone
        first = tokenizer.bos_token_id
        if first is None:
            first = tokenizer.eos_token_id or 0
        writing = Writing(_TOKENS, sampling=Sampling(1.0, seed=0))
        texts = Generator(network, tokenizer, ()).write([[first]] * _TEXTS, writing)
        return [torch.tensor([[first, *text.tokens]]) for text in texts if text.tokens]


def chances_of(expected: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the chance of each word to be in a draw, (V,): in proportion to its share.

    None is above one. A word that the model hardly expects counts as one of a twentieth of the mean
    share: none weighs without bound.

    Parameters
    ----------
    expected : float64 array (V,)
        Share of each word.
    count : int
        Mean number of words of a draw; less than V.
    """
    wanted = expected + _LEAST_SHARE * expected.sum() / len(expected)
    low, high = 0.0, count / float(wanted.min())
    for _ in range(100):
        middle = (low + high) / 2
        if np.minimum(middle * wanted, 1.0).sum() < count:
            low = middle
        else:
            high = middle
    return np.minimum(high * wanted, 1.0)


def _require_plain_head(model: SharedModel) -> None:
    """Refuse a model whose logits of some words are not those words' of all.

    Raises
    ------
    ConfigError
        Then.
    """
    remedy = "leave training.sampled_words out, or take another base model"
    module: Any = model.module
    if module.backbone.config.is_encoder_decoder:
        raise ConfigError("training.sampled_words needs a decoder without an encoder", remedy)
    head = module.backbone.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.dim() != 2:
        raise ConfigError("training.sampled_words needs a head of numbers, not of integers", remedy)
    readout = module.readout
    place = weight.device
    ids = torch.arange(0, len(weight), max(1, len(weight) // 8), device=place)
    words = Words(ids, torch.zeros(len(ids), device=place))
    normal = RandomStream.seeded(0, "sampled words").normal(_TRIED * weight.shape[1])
    states = torch.tensor(normal.reshape(_TRIED, -1), dtype=weight.dtype, device=place)
    with torch.no_grad():
        whole = readout.logits(states)[:, words.ids].float()
        try:
            with readout.among(words):
                some = readout.logits(states).float()
        except RuntimeError:
            some = torch.full_like(whole, torch.nan)
    if some.shape != whole.shape or not bool(
        torch.allclose(some, whole, rtol=_CLOSE, atol=_CLOSE * float(whole.abs().max()))
    ):
        raise ConfigError(
            "training.sampled_words: the base model does something else to each word's logit, so "
            "that some cannot be had without all",
            remedy,
        )
