"""Cut batches into pieces whose shape no record decides but by its own length.

A kernel may round one record's numbers differently when other records stand beside it, because
the number of rows decides how a product is carried out. Whoever chooses the adapter can make a
rounding as large as a gradient. So where records are private, every piece has the same number of
rows and a width that follows from the record itself; then a record's numbers are the same, bit
for bit, in whatever place and company it stands.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedllm.models.transformer import Batch
from fedllm.padding import PAD_MULTIPLE

# Rows of a piece of private records.
ROWS = 16


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


def filled(batch: Batch, rows: int = ROWS) -> Batch:
    """Return a batch with its first record repeated behind the others, to a multiple of ``rows``.

    What the model makes of the rows behind is to be dropped.
    """
    count = len(batch["input_ids"])
    missing = -count % rows
    if not missing:
        return batch
    places = torch.cat([torch.arange(count), torch.zeros(missing, dtype=torch.int64)])
    return take(batch, places, batch["input_ids"].shape[1])


def take(batch: Batch, places: Tensor, length: int) -> Batch:
    """Return the records at ``places``, cut to ``length`` tokens."""
    return {
        key: value[places, :length] if value.dim() == 2 else value[places]
        for key, value in batch.items()
    }
