"""Teaching that was broken off goes on where it was last kept.

What is kept lies in one hidden file beside the folder that is to be made: the numbers that are
trained, the optimiser's, and how far it was. It is as public as what it is made of. A teaching
that goes on ends as one that was never broken off does, for nothing in it is left to chance.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor
from torch.optim import Optimizer

from fedllm.canonical import sha256_hex
from fedllm.errors import ConfigError
from fedllm.files import write_bytes
from fedllm.models.contents import reading

_LABEL = "fedllm.teaching.v1"
_REMEDY = "remove the file; teaching begins anew then"


@dataclass(slots=True)
class Unfinished:
    """Where a teaching is kept while it runs.

    Attributes
    ----------
    path : Path
        The file.
    asked : str
        What is taught, as `fingerprint` tells; another teaching is not gone on with.
    every_s : float
        Seconds between two times that it is written.
    """

    path: Path
    asked: str
    every_s: float = 60.0
    _written: float = field(default_factory=time.monotonic)

    def resume(self, trained: Mapping[str, Tensor], optimizer: Optimizer) -> list[float]:
        """Put what was kept into a model and its optimiser; returns the loss of each step done.

        Raises
        ------
        ConfigError
            If the file is of another teaching.
        CheckpointError
            If it is damaged.
        """
        if not self.path.exists():
            return []
        with (
            reading(f"{self.path} is damaged", _REMEDY),
            safe_open(str(self.path), "pt") as file,
        ):
            told = file.metadata() or {}
            if (told.get("label"), told.get("asked")) != (_LABEL, self.asked):
                raise ConfigError(
                    f"{self.path} was left by another teaching that was broken off",
                    "repeat that command to go on with it, or remove the file",
                )
            losses = [float(loss) for loss in json.loads(told["losses"])]
            with torch.no_grad():
                for name, values in trained.items():
                    values.copy_(file.get_tensor(name))
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                of, _, key = name.rpartition("#")
                if of:
                    optimizer.state[trained[of]][key] = file.get_tensor(name)
        return losses

    def keep(
        self, trained: Mapping[str, Tensor], optimizer: Optimizer, losses: Sequence[float]
    ) -> None:
        """Write how far it is, if the last time is long enough ago.

        Raises
        ------
        StorageError
            If the disk is full; what was kept before is as it was.
        """
        if time.monotonic() - self._written < self.every_s:
            return
        # Weights of one file may share what they lie in, which the format does not have.
        tensors = {name: values.detach().clone() for name, values in trained.items()}
        for name, values in trained.items():
            tensors |= {f"{name}#{key}": kept for key, kept in optimizer.state[values].items()}
        told = {"label": _LABEL, "asked": self.asked, "losses": json.dumps(list(losses))}
        whole = {name: values.contiguous() for name, values in tensors.items()}
        write_bytes(self.path, format_safetensors(whole, told))
        self._written = time.monotonic()


def beside(out: Path) -> Path:
    """Return where the teaching of what becomes a folder is kept."""
    return out.with_name(f".{out.name}.teaching")


def fingerprint(models: Sequence[torch.nn.Module], asked: object) -> str:
    """Return what tells a teaching from others: models as they are at its start, and the rest.

    Parameters
    ----------
    asked : object
        Whatever else it hangs on, as JSON can say it.
    """
    digests = [
        sha256_hex(values.detach().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        for model in models
        for values in model.state_dict().values()
    ]
    return sha256_hex(json.dumps([digests, asked]).encode())
