"""Cut batches into pieces for the model: of one width, or of one privacy unit.

A kernel may round one record's numbers differently when other records stand beside it, and
whoever chooses the adapter can make a rounding as large as a gradient. So where records are
private, each unit (a record, or a person with all records) is a piece of its own: what is computed
of it then depends on it and on public things alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedllm.models.transformer import Batch
from fedllm.padding import PAD_MULTIPLE


def widths(batch: Batch) -> Tensor:
    """Return how many tokens each record of a batch is padded to, (B,): by its own length alone."""
    lengths = batch["attention_mask"].sum(1)
    whole = -(-lengths // PAD_MULTIPLE) * PAD_MULTIPLE
    return whole.clamp(min=PAD_MULTIPLE, max=max(batch["attention_mask"].shape[1], 1))


def by_width(batch: Batch, rows: int) -> Iterator[tuple[Tensor, Batch]]:
    """Cut a batch into pieces of at most ``rows`` records that have one width (see `widths`).

    Yields
    ------
    places : Tensor
        (n,) int64, where the piece's records stand in ``batch``.
    piece : Batch
        The records, padded to their width.
    """
    of_rows = widths(batch)
    for width in torch.unique(of_rows).tolist():
        places = torch.nonzero(of_rows == width).flatten()
        for start in range(0, len(places), rows):
            yield places[start : start + rows], take(batch, places[start : start + rows], width)


def by_unit(
    batch: Batch, units: NDArray[np.int64], rows: int
) -> Iterator[list[tuple[Tensor, Batch]]]:
    """Cut a batch into its units, and each unit into pieces of at most ``rows`` records.

    Parameters
    ----------
    units : int64 array (B,)
        The unit of each record.

    Yields
    ------
    list of (Tensor, Batch)
        The pieces of one unit: where its records stand in ``batch``, and these, padded to the
        width of the unit's longest record.
    """
    of_rows = widths(batch)
    order = np.argsort(units, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(units[order])) + 1):
        places = torch.from_numpy(members)
        width = int(of_rows[places].max())
        parts = (places[start : start + rows] for start in range(0, len(places), rows))
        yield [(part, take(batch, part, width)) for part in parts]


def take(batch: Batch, places: Tensor, length: int) -> Batch:
    """Return the records at ``places``, cut to ``length`` tokens."""
    return {
        key: value[places, :length] if value.dim() == 2 else value[places]
        for key, value in batch.items()
    }
