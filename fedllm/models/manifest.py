"""The order in which an adapter's tensors lie in one flat vector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedllm.canonical import sha256_hex

Group = Literal["lora", "head"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One trained tensor and its place in the flat adapter vector.

    Attributes
    ----------
    name : str
        Name of the parameter in the module.
    shape : tuple of int
        Its shape.
    group : {"lora", "head"}
        What it belongs to; the groups have their own learning rates. "lora" is all that adapts
        layers, also where it is tensors of the base itself.
    start : int
        Index of its first value in the vector.
    """

    name: str
    shape: tuple[int, ...]
    group: Group
    start: int

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def kind(self) -> str:
        """Which matrix of an adapter it is, "A", "B" or "R"; else "head", or "base"."""
        if self.group == "head":
            return "head"
        return self.name.partition(".lora_")[2].partition(".")[0] or "base"

    @property
    def slice(self) -> slice:
        """Where its values lie in the vector."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """All trained tensors, ordered by name; the same at every site."""

    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, tuple[int, ...], Group]]) -> AdapterManifest:
        """Lay out tensors by name, whatever order they come in."""
        segments, start = [], 0
        for name, shape, group in sorted(shapes):
            segments.append(Segment(name, tuple(shape), group, start))
            start += segments[-1].size
        return cls(tuple(segments))

    @property
    def length(self) -> int:
        """Number of values in the flat vector."""
        return sum(segment.size for segment in self.segments)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, shapes and groups."""
        text = "\n".join(f"{s.name} {s.shape} {s.group}" for s in self.segments)
        return sha256_hex(text)

    def only(self, *kinds: str) -> AdapterManifest:
        """Lay out some of the tensors: ``"A"``, ``"B"``, ``"R"`` of adapters, ``"head"``."""
        return AdapterManifest.of(
            (s.name, s.shape, s.group) for s in self.segments if s.kind in kinds
        )

    def places(self, part: AdapterManifest) -> NDArray[np.int64]:
        """Return where the values of ``part``, some of these tensors, lie in this vector."""
        own = {segment.name: segment for segment in self.segments}
        ranges = [np.arange(own[s.name].start, own[s.name].start + s.size) for s in part.segments]
        return np.concatenate([np.empty(0, dtype=np.int64), *ranges])

    def per_value(self, lora: float, head: float) -> NDArray[np.float64]:
        """Return a float64 vector (length,) with one number for each group's values."""
        result = np.empty(self.length)
        for segment in self.segments:
            result[segment.slice] = lora if segment.group == "lora" else head
        return result
