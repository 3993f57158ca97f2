"""The processes of one run: alone, or several started by ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fedllm.errors import ConfigError


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
