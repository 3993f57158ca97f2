"""The processes of one run: alone, or several started by ``torchrun``.

Several either hold the whole model each and average gradients (DDP), or hold a shard of
parameters, gradients and optimiser states each (FSDP2, `torch.distributed.fsdp`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from fedllm.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """One process among those of a run; every method is called by all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Return the sums over processes, in float64."""
        if self.size == 1:
            return list(values)
        on = "cpu" if self.device.type == "cpu" else self.device
        tensor = torch.tensor(values, dtype=torch.float64, device=on)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    def share(self, value: T) -> T:
        """Return the first process's ``value``."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, or be a world of one.

    Raises
    ------
    ConfigError
        If the environment names several processes but not how to reach them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if size == 1:
        yield World(0, 1, device)
        return
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), device)
        return
    if cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if cuda else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE = {size}, but the processes cannot meet: {error}",
            "start with torchrun --nproc_per_node N",
        ) from None
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def shard(module: nn.Module) -> None:
    """Divide ``module`` between the processes in place (FSDP2), layer by layer.

    Parameters become DTensors, each process holding its rows. A layer is gathered when it
    runs and let go afterwards, so that a process needs memory for its share, one layer, and
    what stands outside of the layers (embeddings, norms, heads).
    """
    for layer in layers(module):
        fully_shard(layer)
    fully_shard(module, reshard_after_forward=True)


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the Transformer layers inside ``module``."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers(child)


def synchronise(module: nn.Module, now: bool) -> None:
    """Say whether the next backward pass ends with the exchange of gradients."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = now
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)


def whole_model(model: PreTrainedModel, world: World) -> PreTrainedModel | None:
    """Return the model with whole parameters: itself, or a copy on the first process.

    Called by all processes; None on the others if the model is sharded.
    """
    if not any(isinstance(p, DTensor) for p in model.parameters()):
        return model
    whole = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().full_tensor().cpu()  # type: ignore[attr-defined]
        if world.first:
            whole[name] = tensor
    if not world.first:
        return None
    with torch.random.fork_rng(devices=[]):
        copy = type(model)(deepcopy(model.config))
    copy.load_state_dict(whole, strict=False)
    copy.generation_config = deepcopy(model.generation_config)
    return copy
