"""Where a model computes: on this machine's processor, or on one of its GPUs.

A setting of the machine, and nothing that a federation agrees on. Batches are drawn and cut, sums,
clipping and noise made on the processor in any case; what a GPU computes of one unit are its
gradient and its scores.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from fedllm.errors import ConfigError, ShortOfMemoryError
from fedllm.memory import lacks_memory
from fedllm.models.transformer import Batch

CPU = torch.device("cpu")
# Which key of which file names the device, where that is a run's own.
RUN_KEY = "engine.device"
_IGNORED = -100

Result = TypeVar("Result")


def chosen_device(name: str | None, key: str = RUN_KEY) -> torch.device:
    """Return the device that a setting names; ``"auto"`` is a GPU if there is one.

    Parameters
    ----------
    name : str, optional
        "cpu", "cuda", "cuda:N" or "auto"; the processor when left out.
    key : str
        Where it stands, for words.

    Raises
    ------
    ConfigError
        If this machine has no such device; says what there is.
    """
    if name in (None, "cpu"):
        return CPU
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not count:
        return CPU
    wanted = torch.device("cuda" if name == "auto" else str(name))
    number = wanted.index or 0
    if number >= count:
        raise ConfigError(f"{key} = {name!r}: {_there(count)}", _remedy(count))
    _repeat_exactly()
    return torch.device("cuda", number)


def _there(count: int) -> str:
    if count:
        names = (f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(count))
        return f"this machine has {', '.join(names)}"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} on this machine is built without GPUs"
    return f"PyTorch {torch.__version__} finds no GPU that it can use on this machine"


def _remedy(count: int) -> str:
    if count:
        return "name one of these, or 'cpu'"
    return (
        "set it to 'cpu' (or 'auto', which takes a GPU where there is one); for a GPU install "
        "PyTorch for it, and let the driver's device files be seen (nvidia-smi)"
    )


def _repeat_exactly() -> None:
    """Let kernels add up in one order where PyTorch has such a kernel.

    What is kept of a record and what is computed of it afresh are then the same.
    """
    # Read when the library for products of matrices is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def put_on(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move a base model, before anything is put into it or keeps a tensor of it.

    The only place where a model is moved. Adapters and heads are made where the base is: moved
    later, what hooks, an optimiser or a flat vector hold may not be what the model computes with.
    """
    return model.to(device)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Place:
    """A model's device, and how far its tables reach.

    Attributes
    ----------
    device : torch.device
    tokens : int
        Rows of its embeddings.
    outputs : int
        Of its head.
    """

    device: torch.device
    tokens: int
    outputs: int

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """Return that of a base model with a head on it."""
        whole: Any = module
        table = whole.backbone.get_input_embeddings().weight
        head = getattr(whole, "head", None)
        return cls(table.device, len(table), len(table if head is None else head.weight))

    def moved(self, batch: Batch) -> Batch:
        """Return a batch on the device: the one way of records to it.

        Raises
        ------
        IndexError
            If a number is beyond its table: on the processor, so that one record alone breaks off.
            On a GPU nothing could be computed any more by the process, of any record.
        """
        if self.device.type == "cpu":
            return batch
        _require_below(self.tokens, batch["input_ids"])
        labels = batch.get("labels")
        if labels is not None:
            _require_below(self.outputs, labels[labels != _IGNORED])
        return {key: value.to(self.device) for key, value in batch.items()}


ON_CPU = Place(CPU, 0, 0)


def _require_below(size: int, numbers: torch.Tensor) -> None:
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < size:
        raise IndexError("a number beyond its table")


def with_room(
    device: torch.device, work: Callable[[], Result], again: Callable[[], None] = lambda: None
) -> Result:
    """Do some work; where memory was too small, once more with all that can be given back.

    What earlier work left in memory must not decide whether a record fits: then one record's
    length would decide whether another counts.

    Parameters
    ----------
    device : torch.device
        Where the work computes; the machine's own memory may be too small as well.
    again : callable
        Undoes what was begun, and gives up what others keep, before the second time.

    Raises
    ------
    ShortOfMemoryError
        If there is too little the second time too. Whether the work itself or what still lay
        around it was too large, nobody can tell.
    """
    try:
        return work()
    except BaseException as error:
        if not lacks_memory(error):
            raise
    # Not inside: an error that is handled keeps the tensors of all functions that it went through.
    again()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        return work()
    except BaseException as error:
        if not lacks_memory(error):
            raise
    again()
    raise ShortOfMemoryError(
        f"the memory of {'this machine' if device.type == 'cpu' else device} is too small for "
        "what is computed at once, and was once more with nothing kept",
        "free memory of other programs, raise the limit that the process runs under, or give the "
        "run a smaller model.max_length or training.microbatch_size",
    )


def state_of_chance(device: torch.device) -> torch.Tensor:
    """Return the state of the random numbers that a model could draw on a device."""
    mine = torch.get_rng_state()
    if device.type != "cuda":
        return mine
    return torch.cat([mine, torch.cuda.get_rng_state(device)])
