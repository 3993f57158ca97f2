"""How good the shared model is on a public data set, and on units that a site holds out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.data.encode import EncodedDataset
from fedllm.errors import STOPPING, DataError
from fedllm.models.pieces import by_width
from fedllm.models.prefix import Dataset
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch
from fedllm.tasks import LearningTask, task_of

_CHUNK = 1024


@torch.no_grad()
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
    task = task_of(model.task)
    sums = sum(
        task.sums(model, model.prefix.attach(dataset, rows, piece))
        for rows, piece in _pieces(dataset, batch_size)
    )
    if not isinstance(sums, np.ndarray) or sums[-1] == 0:
        raise DataError(
            "there is nothing to evaluate: the test data has no record or no token that counts",
            "check data.test and model.max_length",
        )
    return task.figures(sums, len(dataset), model.labels)


@torch.no_grad()
def unit_scores(model: SharedModel, dataset: EncodedDataset | None) -> NDArray[np.float64]:
    """Return for each unit the mean of its records' scores.

    Parameters
    ----------
    dataset : EncodedDataset, optional
        None holds no units.

    Returns
    -------
    float64 array (U, S)
        The task's `LearningTask.site_scores`, not yet bounded, of units that have records.
    """
    task = task_of(model.task)
    if dataset is None:
        return np.zeros((0, len(task.site_scores)))
    scores = np.zeros((len(dataset), len(task.site_scores)))
    # Each record by itself: none may change what is computed of another.
    for rows, piece in _pieces(dataset, 1):
        scores[rows] = _scores(task, model, dataset, rows, piece)
    # A unit without records adds nothing to a sum, not even itself.
    _, units, counts = np.unique(dataset.units, return_inverse=True, return_counts=True)
    sums = [np.bincount(units, weights=column, minlength=len(counts)) for column in scores.T]
    return np.stack(sums, axis=1) / counts[:, None]


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
        found = task.scores(model, model.prefix.attach(dataset, rows, piece))
        # Whether its frozen part was kept, or broke off just now, is for others to decide.
        return found if np.isfinite(found).all() else nothing
    except STOPPING:
        raise
    except BaseException:
        return nothing


def _pieces(dataset: Dataset, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Cut a data set into batches of similar length; also says which records each holds."""
    for start in range(0, len(dataset), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(dataset)))
        for places, piece in by_width(dataset.batch(indices), batch_size):
            yield indices[places.numpy()], piece
