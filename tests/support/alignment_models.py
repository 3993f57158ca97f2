"""A tiny model that writes, and rewards whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support.tiny_models import WORDS

from fedllm.alignment.evaluation import Prompt
from fedllm.alignment.loop import Alignment, Parts
from fedllm.alignment.policy import Policy
from fedllm.alignment.prompts import PublicPrompts
from fedllm.config import parse
from fedllm.config.alignment import AlignConfig
from fedllm.serving.usable import Usable, open_usable

WANTED = "loan"


class ShareOf:
    """Rewards answers by which part of their words is one word."""

    def __init__(self, word: str = WANTED) -> None:
        self._word = word

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
        words = [answer.split() for answer in answers]
        return torch.tensor([w.count(self._word) / max(len(w), 1) for w in words])


def configuration(**sections: Any) -> AlignConfig:
    """Return a configuration of small numbers; what stands in it comes last."""
    values: dict[str, Any] = {
        "name": "aligned",
        "model": {"start": "start"},
        "reward": {"run": "reward"},
        "prompts": {"file": "prompts.jsonl", "selection": 8, "test": 8},
        "answers": {"new_tokens": 8, "per_prompt": 4},
        "training": {"steps": 4, "prompts": 4, "learning_rate": 0.02, "microbatch_size": 8},
        "guards": {"distinct": 0.0, "length_change": 5.0, "most_faulty": 1.0},
        "selection": {"every": 2},
    }
    for section, change in sections.items():
        laid_over = isinstance(change, dict) and section in values
        values[section] = {**values[section], **change} if laid_over else change
    return parse(AlignConfig, values, "test")


def texts(count: int) -> list[str]:
    """Return different prompts of words that the tiny tokenizer knows."""
    return [
        f"{WORDS[n % 12]} {WORDS[n // 12 % 12]} {WORDS[(n * 5 + 1) % 12]}" for n in range(count)
    ]


def opened(folder: Path) -> Usable:
    """Open a run's model."""
    return open_usable(folder)


def parts_of(usable: Usable, reward: Any = None, judge: Any = None) -> Parts:
    """Return what an alignment of a model works with."""
    reward = reward or ShareOf()
    prompts = [Prompt(text, usable.prompt(text, 8).ids) for text in texts(96)]
    return Parts(
        Policy(usable.released.model),
        usable.require_generator(),
        usable.prompting.gap,
        reward,
        judge or reward,
        PublicPrompts(prompts[2::3], prompts[::3], prompts[1::3], 0, 0),
    )


def alignment(
    folder: Path, out: Path, algorithm: str = "grpo", config: AlignConfig | None = None, **more: Any
) -> Alignment:
    """Return an alignment of the model in a folder."""
    keep = {key: more.pop(key) for key in ("reward", "judge") if key in more}
    parts = parts_of(opened(folder), **keep)
    return Alignment(config or configuration(), algorithm, parts, out, {}, **more)
