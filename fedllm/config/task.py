"""What a configuration must know of a task; all else is in `fedllm.tasks`.

All functions are exhaustive: mypy refuses a new name of `Task` that they do not decide.
"""

from __future__ import annotations

from typing import Literal, assert_never

from fedllm.config.preference import Objective
from fedllm.config.section import Task

Kind = Literal["text", "name", "spans", "texts", "numbers"]


def trains_a_head(task: Task, objective: Objective = "dpo") -> bool:
    """Tell whether something is trained beside the adapters, so that a run can do without them.

    Parameters
    ----------
    objective : str
        Of a preference task.
    """
    match task:
        case "classification" | "token_classification":
            return True
        case "preference":
            return objective == "reward"
        case "instruction" | "causal":
            return False
        case _:
            assert_never(task)


def pools_text(task: Task) -> bool:
    """Tell whether a text becomes one vector, which alone can be compared with a label's name."""
    match task:
        case "classification":
            return True
        case "instruction" | "causal" | "token_classification" | "preference":
            return False
        case _:
            assert_never(task)


def labels_records(task: Task) -> bool:
    """Tell whether each record has one label, of which quality can be told by itself."""
    match task:
        case "classification":
            return True
        case "instruction" | "causal" | "token_classification" | "preference":
            return False
        case _:
            assert_never(task)


def learns_next_tokens(task: Task) -> bool:
    """Tell whether losses are of next tokens alone."""
    match task:
        case "instruction" | "causal":
            return True
        case "classification" | "token_classification" | "preference":
            return False
        case _:
            assert_never(task)


def learns_preferences(task: Task) -> bool:
    """Tell whether ``[preference]`` says what is learned."""
    match task:
        case "preference":
            return True
        case "classification" | "instruction" | "causal" | "token_classification":
            return False
        case _:
            assert_never(task)


def smallest_unit(task: Task) -> Literal["record"]:
    """Name what one unit of privacy is where no person is named; `LearningTask.unit` keys it."""
    match task:
        case "classification" | "instruction" | "causal" | "token_classification":
            return "record"
        case "preference":
            # All rows of one ranking event are one record once they are read.
            return "record"
        case _:
            assert_never(task)


def columns_read(task: Task) -> dict[str, Kind]:
    """Return the keys of ``data`` that name what a task reads.

    Free text, short names, the spans of the text that is read too, or lists of texts or numbers.
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
        case "preference":
            pair: dict[str, Kind] = {"chosen": "text", "rejected": "text"}
            ranking: dict[str, Kind] = {"answers": "texts", "ranks": "numbers"}
            return {"prompt": "text", "context": "text", **pair, **ranking}
        case _:
            assert_never(task)


def may_lack(task: Task) -> frozenset[str]:
    """Return those of `columns_read` that a source may lack, or that may be empty in a row."""
    match task:
        case "classification" | "instruction" | "causal" | "token_classification":
            return frozenset()
        case "preference":
            return frozenset({"context"}).union(*either_of(task))
        case _:
            assert_never(task)


def either_of(task: Task) -> tuple[tuple[str, ...], ...]:
    """Return groups of `columns_read`, one of which has to be there whole; none for most tasks."""
    match task:
        case "classification" | "instruction" | "causal" | "token_classification":
            return ()
        case "preference":
            return (("chosen", "rejected"), ("answers", "ranks"))
        case _:
            assert_never(task)
