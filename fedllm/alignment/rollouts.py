"""Answers sampled from a model, token by token as it drew them.

They are drawn from the whole distribution, at temperature 1: then what is optimised is what was
sampled from, ratios and distances mean what their formulas say, and no other distribution stands
between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedllm.models.drawing import Drawing, Sampling
from fedllm.models.generation import Generator, Writing
from fedllm.models.transformer import Batch
from fedllm.padding import PAD_MULTIPLE

_IGNORED = -100
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt.

    Attributes
    ----------
    prompt : tuple of int
        Tokens of the prompt, in its template.
    tokens : tuple of int
        All that were drawn, the one that ended it among them; at least one.
    text : str
        In words, without what ended it.
    ended : bool
        Whether it ended by itself; else it came to its largest length, and was cut.
    """

    prompt: Tokens
    tokens: Tokens
    text: str = field(repr=False)
    ended: bool = True

    @property
    def length(self) -> int:
        """Tokens without the one that ended it."""
        return len(self.tokens) - self.ended


def sample(
    generator: Generator,
    prompts: Sequence[Tokens],
    new_tokens: int,
    seed: int,
    rows: int,
    gap: str = "",
) -> list[Answer]:
    """Return one answer to each prompt, in their order.

    Parameters
    ----------
    prompts : sequence of tuples of int
        One that stands there several times gets as many answers of their own.
    new_tokens : int
        Most of an answer.
    seed : int
        The same seed, model and prompts give the same answers.
    rows : int
        Answers written at once.
    gap : str
        What every answer begins with, and is no part of its text.
    """
    drawn: list[list[int]] = [[] for _ in prompts]
    ways = [Writing(new_tokens, sampling=_Noted(1.0, 1.0, seed, tokens)) for tokens in drawn]
    done = generator.write(prompts, ways, rows=rows)
    answers = []
    for prompt, tokens, one in zip(prompts, drawn, done, strict=True):
        ended = one.finish == "stop"
        # A row that has ended is asked on until the others of its batch have.
        own = tuple(tokens[: len(one.tokens) + ended])
        answers.append(Answer(tuple(prompt), own, one.text.removeprefix(gap), ended))
    return answers


@dataclass(frozen=True)
class _Noted(Sampling):
    """Draws as the model says, and notes each token."""

    tokens: list[int] = field(default_factory=list, repr=False)

    def drawing(self, prompt: Sequence[int], repeat: int = 0) -> Drawing:
        """Return what chooses one sequence's tokens; see the base class."""
        return _NotedDrawing(self, super().drawing(prompt, repeat).stream, self.tokens)


@dataclass(frozen=True, eq=False)
class _NotedDrawing(Drawing):
    tokens: list[int] = field(repr=False)

    def next(self, logits: Tensor) -> int:
        token = super().next(logits)
        self.tokens.append(token)
        return token


def batch_of(answers: Sequence[Answer], pad: int) -> Batch:
    """Return prompts and answers as one batch, padded on the right; the answers' tokens count.

    Parameters
    ----------
    pad : int
        Any token.

    Returns
    -------
    dict of Tensor
        ``input_ids``, ``attention_mask`` and ``labels`` (-100 where no token counts), each
        (B, T), int64.
    """
    longest = max(len(one.prompt) + len(one.tokens) for one in answers)
    width = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
    ids = torch.full((len(answers), width), pad, dtype=torch.int64)
    labels, mask = torch.full_like(ids, _IGNORED), torch.zeros_like(ids)
    for row, one in enumerate(answers):
        first, last = len(one.prompt), len(one.prompt) + len(one.tokens)
        ids[row, :last] = torch.tensor([*one.prompt, *one.tokens])
        labels[row, first:last] = torch.tensor(one.tokens)
        mask[row, :last] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
