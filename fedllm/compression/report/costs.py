"""What a compared model costs: weights, time beside the original, memory of its own process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from torch import Tensor, nn

from fedllm.compression.int8 import Int8Embedding, Int8Linear
from fedllm.compression.measuring import latencies_ms
from fedllm.compression.report.figures import Latency, Memory
from fedllm.compression.report.opened import Answer, Inputs, answering, open_model
from fedllm.compression.weight_only import Int4Linear
from fedllm.errors import ShortOfMemoryError
from fedllm.tasks.public_texts import Tokens

_STATUS = Path("/proc/self/status")
_PASSES = 5


def weights(model: nn.Module) -> tuple[int, int] | None:
    """Return how many weights a model has, and how many are not zero.

    Each counts once, however many parts share it; scales of integers do not count. None where
    weights are held in a form that is not known here.
    """
    found: dict[int, Tensor] = {}
    count = nonzero = 0
    for part in model.modules():
        own: Sequence[Tensor | None] = tuple(part.parameters(recurse=False))
        if isinstance(part, Int8Linear | Int8Embedding):
            own = (part.weight, getattr(part, "bias", None))
        elif isinstance(part, Int4Linear):
            own = (part.get_buffer("bias"),) if part.bias is not None else ()
            count += part.in_features * part.out_features
            nonzero += part.count_nonzero()
        elif hasattr(part, "in_features") and not isinstance(
            getattr(part, "weight", None), nn.Parameter
        ):
            return None
        found |= {values.data_ptr(): values for values in own if values is not None}
    count += sum(values.numel() for values in found.values())
    return count, nonzero + sum(int(torch.count_nonzero(values)) for values in found.values())


def latencies(answer: Answer, original: Answer, inputs: Inputs) -> tuple[Latency, ...]:
    """Time a model and the original, in turns: one text, and several at once."""
    found = []
    for texts in (inputs.alone, inputs.together):
        models = {"original": original, "model": answer}
        if answer is original:
            del models["original"]
        taken = latencies_ms(models, texts, _PASSES)
        ms = taken["model"]
        before = taken.get("original", ms)
        found.append(Latency(texts=len(texts[0]), ms=ms, original_ms=before))
    return tuple(found)


def memory(name: str, folder: Path, inputs: Inputs) -> Memory | None:
    """Load a model in a process of its own and let it answer; None where nothing tells memory.

    Raises
    ------
    ShortOfMemoryError
        If the process was ended by the system.
    """
    if not _STATUS.exists():
        return None
    texts = (inputs.alone[0], *inputs.together)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        asked = pool.submit(_peak, str(folder), texts, torch.get_num_threads())
        try:
            return asked.result()
        except BrokenProcessPool:
            raise ShortOfMemoryError(
                f"the process that measured the memory of {name} was ended by the system",
                "free memory, or leave that model out",
            ) from None


@torch.no_grad()
def _peak(folder: str, asked: Sequence[Sequence[Tokens]], threads: int) -> Memory:
    torch.set_num_threads(threads)
    libraries = _resident("VmRSS")
    answer = answering(open_model(Path(folder)))
    for texts in asked:
        answer(texts)
    return Memory(
        peak_bytes=_resident("VmHWM"), held_bytes=_resident("VmRSS"), libraries_bytes=libraries
    )


def _resident(mark: str) -> int:
    """Return this process's resident memory in bytes: now (VmRSS), or at most (VmHWM)."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{mark}:"))
