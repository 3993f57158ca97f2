"""From the name of a task in a configuration to the task."""

from __future__ import annotations

from typing import Protocol, assert_never

from fedllm.config import PreferenceSection, Task
from fedllm.tasks.base import LearningTask
from fedllm.tasks.causal import Causal
from fedllm.tasks.classification import Classification
from fedllm.tasks.instruction import Instruction
from fedllm.tasks.preference import Preference
from fedllm.tasks.token_classification import TokenClassification


class Learned(Protocol):
    """A run's configuration, or a model, which knows what it is trained for."""

    @property
    def task(self) -> Task:
        """The task's name."""

    @property
    def preference(self) -> PreferenceSection | None:
        """How preferences are learned, where they are."""


def task_of(of: Task | Learned) -> LearningTask:
    """Return the task of a run, a model, or a name.

    By its name alone a task reads records as any of its runs does; what is trained on them, and
    how, may hang on the run. mypy refuses a name that is not decided here, and a task that lacks a
    part.
    """
    name = of if isinstance(of, str) else of.task
    preference = None if isinstance(of, str) else of.preference
    match name:
        case "classification":
            return Classification()
        case "instruction":
            return Instruction()
        case "causal":
            return Causal()
        case "token_classification":
            return TokenClassification()
        case "preference":
            return Preference(preference or PreferenceSection())
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
