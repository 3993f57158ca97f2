"""From the name of a task in a configuration to the task."""

from __future__ import annotations

from typing import assert_never

from fedllm.config import Task
from fedllm.tasks.base import LearningTask
from fedllm.tasks.causal import Causal
from fedllm.tasks.classification import Classification
from fedllm.tasks.instruction import Instruction
from fedllm.tasks.token_classification import TokenClassification


def task_of(name: Task) -> LearningTask:
    """Return the task of a name.

    mypy refuses a name that is not decided here, and a task that lacks a part.
    """
    match name:
        case "classification":
            return Classification()
        case "instruction":
            return Instruction()
        case "causal":
            return Causal()
        case "token_classification":
            return TokenClassification()
        case _:
            assert_never(name)


def task_for_base(causal: bool, prompted: bool = False) -> LearningTask:
    """Return the task to try a base model with when no run asks for one: it fits any such base.

    Parameters
    ----------
    causal : bool
        Whether the base predicts the next token.
    prompted : bool
        Whether it is an encoder-decoder, which needs a prompt to do so.
    """
    if prompted:
        return Instruction()
    return Causal() if causal else Classification()
