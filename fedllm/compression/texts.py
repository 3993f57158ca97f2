"""Public texts by which it is seen what matters in a model, and on which it is taught."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fedllm.compression.linears import Batch
from fedllm.randomness import RandomStream
from fedllm.tasks.public_texts import Tokens

# Batches within which texts are put together by length.
_SORTED = 64


def single(texts: Sequence[Tokens], most: int) -> list[Batch]:
    """Return texts by themselves, so that there is no padding: at most so many, evenly drawn."""
    step = max(1, len(texts) // most)
    return [padded([text], 0) for text in texts[::step][:most]]


def endless(texts: Sequence[Tokens], size: int, pad: int, stream: RandomStream) -> Iterator[Batch]:
    """Yield batches for ever; in each pass over the texts every one comes once, in another order.

    Texts of a batch are of similar length, so that little of it is padding.

    Parameters
    ----------
    size : int
        Texts of a batch; fewer where there are not as many.
    pad : int
        The padding token.
    """
    size = min(size, len(texts))
    while True:
        order = [texts[place] for place in stream.permutation(len(texts))]
        order = order[: len(order) - len(order) % size]
        for start in range(0, len(order), _SORTED * size):
            part = sorted(order[start : start + _SORTED * size], key=len)
            for batch in stream.permutation(len(part) // size):
                yield padded(part[batch * size : (batch + 1) * size], pad)


def padded(texts: Sequence[Tokens], pad: int) -> Batch:
    """Return texts as one batch, filled up on the right."""
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), pad)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}
