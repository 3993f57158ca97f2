"""How good a model is on the records, and how sure it is that it is better or worse than another.

Differences are paired: both models are judged on the same records, and the interval is of records
drawn again (Efron's bootstrap, percentiles), so that what makes a record hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.compression.report.figures import Difference
from fedllm.compression.report.opened import Inputs, texts_of
from fedllm.config.task import labels_records
from fedllm.errors import TrainingError
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of

MACRO_F1 = "macro_f1"
_DRAWN = 1000
Weights = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model makes of the records.

    Attributes
    ----------
    sums : float64 array (N, K)
        What each record adds to the task's figures (`LearningTask.sums`).
    answers : sequence
        The answer to each text, or the likeliest token at each place that counts.
    classes : tuple of int64 arrays (N,), optional
        The right and the given label of each record, where each has one.
    """

    sums: NDArray[np.float64]
    answers: Sequence[Hashable]
    classes: tuple[NDArray[np.int64], NDArray[np.int64]] | None


@torch.no_grad()
def judge(
    name: str, model: SharedModel, inputs: Inputs, max_length: int, heard: Callable[[int], None]
) -> Judged:
    """Let a model judge all records, one by one.

    Raises
    ------
    TrainingError
        If its losses are no numbers.
    """
    task, dataset, sums = task_of(model), inputs.dataset, []
    labelling = task.predicting()
    answers: list[Hashable] = []
    for place in range(len(dataset)):
        batch = model.moved(dataset.batch(np.array([place])))
        sums.append(task.sums(model, batch))
        if labelling is None:
            module: Any = model.module
            answers += module.likeliest(batch).tolist()
        heard(place + 1)
    found = np.array(sums)
    if not np.isfinite(found).all():
        raise TrainingError(
            f"{name} answers with numbers that are none", "make it again, or leave it out"
        )
    if labelling is not None:
        texts = texts_of(model, inputs.records)
        answers = [said.answer for said in labelling(model, max_length).predict(texts)]
    return Judged(found, answers, _classes(model, inputs, answers))


def quality(model: SharedModel, judged: Judged) -> dict[str, float]:
    """Return the task's measures on all records, the most telling first.

    With the mean F1 of all labels that occur (macro), where each record has one.
    """
    return _measures(model, judged, np.ones(len(judged.sums)))


def differences(model: SharedModel, judged: Judged, original: Judged) -> dict[str, Difference]:
    """Return by how much each measure is above the original's, with 95% intervals."""
    stream, count = RandomStream.seeded(0, "records drawn again"), len(judged.sums)
    draws = []
    for _ in range(_DRAWN):
        rows = stream.below(count, count).astype(np.int64)
        draws.append(_difference(model, judged, original, np.bincount(rows, minlength=count)))
    found = _difference(model, judged, original, np.ones(count))
    spread = {name: np.quantile([d[name] for d in draws], (0.025, 0.975)) for name in found}
    return {
        name: Difference(value=value, low=float(spread[name][0]), high=float(spread[name][1]))
        for name, value in found.items()
    }


def same_answers(judged: Judged, original: Judged) -> float:
    """Return the share of answers that are the original's."""
    pairs = zip(judged.answers, original.answers, strict=True)
    return sum(mine == yours for mine, yours in pairs) / len(original.answers)


def _difference(
    model: SharedModel, judged: Judged, original: Judged, weights: NDArray[Any]
) -> dict[str, float]:
    mine, yours = (_measures(model, one, weights.astype(float)) for one in (judged, original))
    return {name: value - yours[name] for name, value in mine.items()}


def _measures(model: SharedModel, judged: Judged, weights: Weights) -> dict[str, float]:
    """Return the measures of records that count so many times each, (N,)."""
    task = task_of(model)
    told = task.figures(weights @ judged.sums, int(weights.sum()), model.labels)
    found = {name: float(told[name]) for name in task.measures}
    if judged.classes is not None:
        found[MACRO_F1] = _macro_f1(*judged.classes, weights)
    return found


def _macro_f1(gold: NDArray[np.int64], given: NDArray[np.int64], weights: Weights) -> float:
    count, right = max(int(gold.max()), int(given.max())) + 1, gold == given
    there = np.bincount(gold, weights, count)
    hits = np.bincount(gold[right], weights[right], count)
    both = there + np.bincount(given, weights, count)
    return float((2 * hits[there > 0] / both[there > 0]).mean())


def _classes(
    model: SharedModel, inputs: Inputs, answers: Sequence[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    if not labels_records(model.task):
        return None
    number = {label: place for place, label in enumerate(model.labels)}
    right = task_of(model).classes(inputs.records)
    return np.array([number[one] for one in right]), np.array([number[one] for one in answers])
