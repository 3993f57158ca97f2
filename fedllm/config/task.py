"""What a configuration must know of a task; all else is in `fedllm.tasks`.

All functions are exhaustive: mypy refuses a new name of `Task` that they do not decide.
"""

from __future__ import annotations

from typing import Literal, assert_never

from fedllm.config.section import Task


def trains_a_head(task: Task) -> bool:
    """Tell whether something is trained beside the adapters, so that a run can do without them."""
    match task:
        case "classification" | "token_classification":
            return True
        case "instruction" | "causal":
            return False
        case _:
            assert_never(task)


def pools_text(task: Task) -> bool:
    """Tell whether a text becomes one vector, which alone can be compared with a label's name."""
    match task:
        case "classification":
            return True
        case "instruction" | "causal" | "token_classification":
            return False
        case _:
            assert_never(task)


def labels_records(task: Task) -> bool:
    """Tell whether each record has one label, of which quality can be told by itself."""
    match task:
        case "classification":
            return True
        case "instruction" | "causal" | "token_classification":
            return False
        case _:
            assert_never(task)


def smallest_unit(task: Task) -> Literal["record"]:
    """Name what one unit of privacy is where no person is named; `LearningTask.unit` keys it."""
    match task:
        case "classification" | "instruction" | "causal" | "token_classification":
            return "record"
        case _:
            assert_never(task)


def columns_read(task: Task) -> dict[str, Literal["text", "name", "spans"]]:
    """Return the keys of ``data`` that name what a task reads.

    Free text, short names, or the spans of the text that is read too.
    """
    match task:
        case "classification":
            return {"text": "text", "label": "name"}
        case "instruction":
            return {"prompt": "text", "response": "text"}
        case "causal":
            return {"text": "text"}
        case "token_classification":
            return {"text": "text", "spans": "spans"}
        case _:
            assert_never(task)
