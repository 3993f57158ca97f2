"""How good the shared model is on a public data set, and on units that a site holds out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.data.encode import EncodedDataset
from fedllm.errors import ENDING, DataError
from fedllm.models.pieces import by_width
from fedllm.models.prefix import Dataset
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch
from fedllm.tasks import LearningTask, task_of
from fedllm.tasks.scores import UnitScores

_CHUNK = 1024


def evaluate(model: SharedModel, dataset: Dataset, batch_size: int = 64) -> dict[str, float]:
    """Measure the model on all records of ``dataset``.

    Returns
    -------
    dict
        ``records``, and ``loss``: mean nats of what the task counts, a record or a token; the
        task's other metrics, such as ``accuracy`` or ``perplexity``.

    Raises
    ------
    DataError
        If there is no record, or no token that counts.
    """
    sums = _sums(model, dataset, np.arange(len(dataset)), batch_size)
    if sums is None:
        raise DataError(
            "there is nothing to evaluate: the test data has no record or no token that counts",
            "check data.test and model.max_length",
        )
    return task_of(model).figures(sums, len(dataset), model.labels)


def evaluate_parts(
    model: SharedModel, dataset: Dataset, parts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Measure the model on parts of a public data set, each by itself.

    Parameters
    ----------
    parts : sequence of str
        Of each record, (N,), which part it is in.

    Returns
    -------
    dict of dict
        Figures as `evaluate` has them, by part in order of their names; without parts in which
        nothing counts.
    """
    task, found, places = task_of(model), {}, np.asarray(parts)
    for part in sorted(set(parts)):
        rows = np.flatnonzero(places == part)
        sums = _sums(model, dataset, rows, 64)
        if sums is not None:
            found[part] = task.figures(sums, len(rows), model.labels)
    return found


@torch.no_grad()
def _sums(
    model: SharedModel, dataset: Dataset, rows: NDArray[np.int64], batch_size: int
) -> NDArray[np.float64] | None:
    """Add up what records count for the task's figures; None where nothing does."""
    task = task_of(model)
    sums = sum(
        task.sums(model, model.attach(dataset, indices, piece))
        for indices, piece in _pieces(dataset, rows, batch_size)
    )
    return sums if isinstance(sums, np.ndarray) and sums[-1] else None


def unit_scores(model: SharedModel, dataset: EncodedDataset | None) -> NDArray[np.float64]:
    """Return for each unit the mean of its records' scores; see `scores_of_units`.

    Returns
    -------
    float64 array (U, S)
        The task's `LearningTask.site_scores`, not yet bounded, of units that have records.
    """
    return scores_of_units(model, dataset).values


@torch.no_grad()
def scores_of_units(
    model: SharedModel,
    dataset: EncodedDataset | None,
    parts: NDArray[np.int64] | None = None,
) -> UnitScores:
    """Score records, and put those of each unit together.

    Parameters
    ----------
    dataset : EncodedDataset, optional
        None holds no units.
    parts : int64 array (N,), optional
        Which part each record is in; see `UnitScores`.

    Raises
    ------
    ShortOfMemoryError
        See `PrefixCache.with_room`: as in training, memory does not decide what a record counts.
    """
    task = task_of(model)
    if dataset is None:
        return UnitScores.of_records(np.zeros((0, len(task.site_scores))), np.zeros(0, np.int64))
    scores = np.zeros((len(dataset), len(task.site_scores)))
    # Each record by itself: none may change what is computed of another.
    for rows, piece in _pieces(dataset, np.arange(len(dataset)), 1):
        scores[rows] = _scores(task, model, dataset, rows, piece)
    return UnitScores.of_records(scores, dataset.units, parts)


def _scores(
    task: LearningTask,
    model: SharedModel,
    dataset: Dataset,
    rows: NDArray[np.int64],
    piece: Batch,
) -> NDArray[np.float64]:
    """Score one record, (1, S); NaN alone where a library breaks off, in the frozen part too.

    An error would tell, without any noise, that such a record is there.
    """
    nothing = np.full((1, len(task.site_scores)), np.nan)
    try:
        found = model.prefix.with_room(
            lambda: task.scores(model, model.attach(dataset, rows, piece))
        )
        # Whether its frozen part was kept, or broke off just now, is for others to decide.
        return found if np.isfinite(found).all() else nothing
    except ENDING:
        raise
    except BaseException:
        return nothing


def _pieces(
    dataset: Dataset, rows: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Cut records into batches of similar length; also says which records each holds."""
    for start in range(0, len(rows), _CHUNK):
        indices = rows[start : start + _CHUNK]
        for places, piece in by_width(dataset.batch(indices), batch_size):
            yield indices[places.numpy()], piece
