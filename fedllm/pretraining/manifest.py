"""What a folder of shards holds: its manifest, and the shards mapped into memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.canonical import read_object
from fedllm.errors import DataError


@dataclass(frozen=True, slots=True)
class Part:
    """What went into the shards of one source, or of the held-out text.

    ``text_bytes`` counts UTF-8, and ``files`` gives name, size and SHA-256 of each file.
    """

    location: str
    shards: tuple[str, ...]
    documents: int
    tokens: int
    text_bytes: int
    duplicates: int
    excluded: int
    files: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """Folder and file name of the location, without what says its format."""
        path = Path(self.location)
        return f"{path.parent.name}/{path.name.split('.')[0]}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the folder of shards holds; ``key`` changes with anything that made it."""

    key: str
    dtype: str
    boundary: int
    sources: tuple[Part, ...]
    evaluation: tuple[Part, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what was read and what became of it, wherever the files lay."""
        return self._digest("key")

    @property
    def training_fingerprint(self) -> str:
        """The same over what is trained on alone."""
        return self._digest("key", "evaluation")

    def _digest(self, *without: str) -> str:
        values = {name: value for name, value in asdict(self).items() if name not in without}
        for part in (*values["sources"], *values.get("evaluation", ())):
            del part["location"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of shards.

    Raises
    ------
    DataError
        If there is none or it is damaged.
    """
    try:
        values = read_object((folder / "manifest.json").read_bytes())
        sources, evaluation = (
            tuple(
                Part(**{**p, "shards": tuple(p["shards"]), "files": tuple(p["files"])})
                for p in values[name]
            )
            for name in ("sources", "evaluation")
        )
        return Manifest(**{**values, "sources": sources, "evaluation": evaluation})
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder} has no usable manifest.json", "delete the folder; it is made again"
        ) from None


def open_shards(folder: Path, part: Part, dtype: str) -> list[NDArray[Any]]:
    """Map the shards of one part into memory, read-only."""
    return [np.memmap(folder / name, dtype=dtype, mode="r") for name in part.shards]
