"""What a model costs: bytes, multiplications, time of this processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedllm.compression.linears import Batch


def tensor_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's tensors, each counted once, however many parts share it."""
    held = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.nbytes for t in held}.values())


@torch.no_grad()
def operations(answer: Callable[[Batch], object], batch: Batch) -> int:
    """Return the floating-point operations of one forward pass, two for each multiplication.

    Of plain tensors; where products are of integers it tells how many there would be.
    """
    with FlopCounterMode(display=False) as counter:
        answer(batch)
    return counter.get_total_flops()


@torch.no_grad()
def latencies_ms(
    models: Mapping[str, Callable[[Batch], object]], batches: Sequence[Batch], passes: int
) -> dict[str, float]:
    """Return the median time of a batch, model by model, in milliseconds.

    All models take their turns on each batch, so that whatever else the machine does meets all.

    Parameters
    ----------
    passes : int
        How often each batch is answered by each model, after one time to warm up.
    """
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(passes + 1):
        for batch in batches:
            for name, answer in models.items():
                start = time.perf_counter()
                answer(batch)
                if turn:
                    taken[name].append(1000 * (time.perf_counter() - start))
    return {name: median(several) for name, several in taken.items()}
