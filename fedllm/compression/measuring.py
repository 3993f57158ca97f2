"""What a model costs: bytes, multiplications, time of this processor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Given = TypeVar("Given")


def tensor_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's tensors, each counted once, however many parts share it."""
    held = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.nbytes for t in held}.values())


@torch.no_grad()
def operations(answer: Callable[[Given], object], given: Given) -> int:
    """Return the operations of products of one answer, two for each multiplication.

    Integers count as other numbers do, and so do zeros: the processor multiplies them.
    """
    with FlopCounterMode(display=False, custom_mapping=_uncounted()) as counter:
        answer(given)
    return counter.get_total_flops()


def _uncounted() -> dict[Any, Any]:
    """Return how products are counted that PyTorch's own counter does not know."""
    aten = torch.ops.aten
    products = ("_int_mm", "_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu")
    found = {getattr(aten, name): _product for name in products if hasattr(aten, name)}
    return found | {aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def _product(left: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    # Each number of the result is a sum of as many products as the left side is wide.
    return 2 * math.prod(out_shape) * left[-1]


def _attention(
    queries: Sequence[int], keys: Sequence[int], values: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_flop_count(queries, keys, values))


@torch.no_grad()
def latencies_ms(
    models: Mapping[str, Callable[[Given], object]], batches: Sequence[Given], passes: int
) -> dict[str, float]:
    """Return the median over batches of each one's shortest time, by models, in milliseconds.

    All models take their turns on each batch, so that whatever else the machine does meets all.
    A batch's longer times hold what interrupted it, and that more often for a slow model.

    Parameters
    ----------
    passes : int
        How often each batch is answered by each model, after one time to warm up.
    """
    shortest = {name: [math.inf] * len(batches) for name in models}
    for turn in range(passes + 1):
        for place, batch in enumerate(batches):
            for name, answer in models.items():
                start = time.perf_counter()
                answer(batch)
                spent_ms = 1000 * (time.perf_counter() - start)
                if turn:
                    shortest[name][place] = min(shortest[name][place], spent_ms)
    return {name: median(times) for name, times in shortest.items()}
