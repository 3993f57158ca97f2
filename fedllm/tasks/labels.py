"""The public set of labels of a task, and words for a label that is not in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fedllm.config import DataSection
from fedllm.data.labels import check_distinct, nearest
from fedllm.errors import DataError

CORRECT_LABEL = (
    "correct the label (white space, case and Unicode form count), or add it to data.labels"
)
_SHOWN_LABELS, _SHOWN_LETTERS = 20, 100


def public_labels(
    data: DataSection, found: Iterable[str], task: str, least: int
) -> tuple[str, ...]:
    """Return the public set of labels, whose order numbers them.

    ``data.labels`` as given, else the labels of the public test records, sorted by code
    point, or by value if all are whole numbers. Never taken from private records, where
    the presence of a rare label would be known to all.

    Parameters
    ----------
    found : iterable of str
        Labels of the public test records.
    task : str
        What needs them, for the error.
    least : int
        How many it needs.

    Raises
    ------
    DataError
        If neither gives ``least`` labels, ``data.labels`` repeats one, or two of them
        look alike.
    """
    if data.labels is not None:
        if len(set(data.labels)) < len(data.labels):
            raise DataError("data.labels names a label twice", "name each label once")
        labels = data.labels
    else:
        labels = tuple(sorted(set(found)))
        if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
            labels = tuple(sorted(labels, key=lambda label: (int(label), label)))
    if len(labels) < least:
        needed = {1: "one", 2: "two"}[least]
        raise DataError(
            f"the public set of labels has {len(labels)} label(s), {task} needs {needed}",
            "list them in data.labels, or give a public data.test file that has them all",
        )
    listed = data.labels is not None
    where = "data.labels" if listed else data.test or "data.test"
    check_distinct(labels, where, listed=listed)
    return labels


def foreign_label(what: str, label: str, labels: Sequence[str]) -> str:
    """Say that a label is not public, and which public one is nearest to it.

    Parameters
    ----------
    what : str
        Names the label without quoting it, as "field 'category'".
    """
    shown = ", ".join(repr(one[:_SHOWN_LETTERS]) for one in labels[:_SHOWN_LABELS])
    if len(labels) > _SHOWN_LABELS:
        shown += f" and {len(labels) - _SHOWN_LABELS} more"
    near = nearest(label, labels)
    return f"{what} is not one of the {len(labels)} public labels ({shown})" + (
        f"; the nearest is {near!r}" if near is not None else ""
    )
