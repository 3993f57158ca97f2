"""Who says how good an answer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedllm.errors import TrainingError


class Scorer(Protocol):
    """A released reward model, or whatever else gives answers numbers."""

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Return one reward a pair, (N,), float32, on the CPU; only differences have a meaning."""
        ...


def scores_of(scorer: Scorer, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
    """Return what a scorer says, (N,), float64.

    Raises
    ------
    TrainingError
        If a score is no number, or there is not one a pair.
    """
    found = scorer.score(prompts, answers).double()
    if found.shape != (len(answers),) or not bool(torch.isfinite(found).all()):
        raise TrainingError(
            f"the reward model gave {tuple(found.shape)} numbers for {len(answers)} answers, or "
            "one that is not finite",
            "look at its run's metrics: it may have diverged",
        )
    return found
