"""What an answer is worth whatever a reward model says of it, and which models are not kept.

A reward model knows the answers that people compared. It has hardly seen an empty one, one that
never ends, or one that repeats itself, and may like them; a model that is trained against it finds
that out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedllm.alignment.rollouts import Answer
from fedllm.config.alignment import GuardsSection

_RUN = 4
Fault = Literal["empty", "short", "repeated"]
FAULTS: tuple[Fault, ...] = ("empty", "short", "repeated")


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of an answer without asking anybody.

    Attributes
    ----------
    fault : {"empty", "short", "repeated"} or None
        Why it gets the floor.
    cut : bool
        Whether it did not end by itself.
    tokens : int
        Its length.
    """

    fault: Fault | None
    cut: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Scale:
    """The unit of shaped rewards: what the starting model's own answers got.

    Attributes
    ----------
    mean, deviation : float
        Of their rewards; the second is above 0.
    tokens : float
        Their mean length.
    """

    mean: float
    deviation: float
    tokens: float

    def of(self, rewards: Tensor) -> Tensor:
        """Return rewards (N,) in standard deviations from the mean, float64."""
        return (rewards.double() - self.mean) / self.deviation


def look_at(answers: Sequence[Answer], guards: GuardsSection) -> list[Look]:
    """Look at answers that were sampled together.

    Repeated is an answer of which too few runs of four tokens are distinct and, unless
    ``guards.shared_answers``, one that was given to another prompt in the same words.
    """
    if guards.shared_answers:
        return [_look(one, guards, False) for one in answers]
    prompts: defaultdict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
    for one in answers:
        prompts[_words(one)].add(one.prompt)
    return [_look(one, guards, len(prompts[_words(one)]) > 1) for one in answers]


def _words(answer: Answer) -> tuple[int, ...]:
    return answer.tokens[: answer.length]


def _look(answer: Answer, guards: GuardsSection, elsewhere: bool) -> Look:
    fault: Fault | None = None
    if not answer.text.strip():
        fault = "empty"
    elif answer.length < guards.minimum_tokens:
        fault = "short"
    elif repeats(_words(answer), guards.distinct) or (elsewhere and answer.length >= _RUN):
        # Words of one or two tokens may well be right twice.
        fault = "repeated"
    return Look(fault, not answer.ended, answer.length)


def repeats(tokens: Sequence[int], distinct: float) -> bool:
    """Tell whether a smaller share than ``distinct`` of all runs of four tokens is distinct.

    Never of fewer than eight tokens, which have hardly room to repeat anything.
    """
    runs = [tuple(tokens[start : start + _RUN]) for start in range(len(tokens) - _RUN + 1)]
    return len(tokens) >= 2 * _RUN and len(set(runs)) < distinct * len(runs)


def shaped(rewards: Tensor, looks: Sequence[Look], scale: Scale, guards: GuardsSection) -> Tensor:
    """Return what is learned from, (N,), float64, in standard deviations.

    Parameters
    ----------
    rewards : Tensor
        (N,), as the reward model gave them.
    """
    found = scale.of(rewards)
    cut = torch.tensor([one.cut for one in looks])
    faulty = torch.tensor([one.fault is not None for one in looks])
    # Where it wrote nothing at all, the least that can be longer.
    lengths = torch.tensor([one.tokens / max(scale.tokens, 1.0) for one in looks])
    found = found - guards.cut_penalty * cut
    found = found - guards.length_penalty * (lengths.double() - 1.0).clamp(min=0.0)
    return torch.where(faulty, found.clamp(max=guards.floor), found)


def shares(looks: Sequence[Look]) -> dict[str, float]:
    """Return which part of answers is empty, short, repeated and cut, and their mean length."""
    count = len(looks)
    found = {f"{fault}": sum(one.fault == fault for one in looks) / count for fault in FAULTS}
    return {
        **found,
        "cut": sum(one.cut for one in looks) / count,
        "tokens": sum(one.tokens for one in looks) / count,
    }


def objections(
    now: Mapping[str, float], before: Mapping[str, float], guards: GuardsSection, ceiling: float
) -> list[str]:
    """Return why a model is not to be kept; nothing where it may be.

    Parameters
    ----------
    now, before : mapping
        `shares` of its answers, and of the starting model's to the same prompts; ``now`` has
        ``kl``, in nats an answer, too.
    ceiling : float
        Of ``kl``.
    """
    found = []
    faulty, was = (sum(of[fault] for fault in FAULTS) for of in (now, before))
    if now["kl"] > ceiling:
        found.append(f"it is {now['kl']:.1f} nats away, more than kl.ceiling")
    if faulty > was + guards.most_faulty:
        found.append(f"{faulty:.1%} of its answers are empty, short or repeated, {was:.1%} before")
    # Half a token is no change.
    longest = max(guards.length_change * before["tokens"], 0.5)
    if abs(now["tokens"] - before["tokens"]) > longest:
        found.append(
            f"its answers have {now['tokens']:.1f} tokens on average, {before['tokens']:.1f} before"
        )
    return found
