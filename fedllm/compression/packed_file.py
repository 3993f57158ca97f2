"""A packed file: coded matrices, other tensors, and in its header what is what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fedllm.compression.clustering import Clustered
from fedllm.compression.coding import decode
from fedllm.errors import CheckpointError

FORMAT = "fedllm.packed.v2"
CODES, VALUES, SCALES = "#codes", "#values", "#scales"
# Of a code; a matrix has one value less than codes of so many bits tell apart, beside zero.
BITS = (4, 5, 6)
_BITS_BY_VALUES = {2**bits - 1: bits for bits in BITS}


def packed_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a packed file's tensors have when they are read, from its header.

    Raises
    ------
    CheckpointError
        As `read_packed`.
    """
    with opened(path) as file:
        coded = _shapes(path, file.metadata() or {})
    plain = {name: shape for name, shape in plain_shapes(path).items() if "#" not in name}
    return plain | coded


def plain_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors as they lie there, from its header.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    with opened(path) as file:
        return {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118


def read_packed(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Read a packed file's tensors one after another, each in the type that it had.

    Raises
    ------
    CheckpointError
        If it is damaged, or says of itself what cannot be.
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
        shapes, types = _shapes(path, metadata), _types(path, metadata)
        names = set(file.keys())
        for name in sorted(names):
            base, mark, _ = name.partition("#")
            if not mark:
                found = file.get_tensor(name)
                yield name, found.type(types.get(name, found.dtype))
            elif name == base + CODES:
                if base not in shapes or not {base + VALUES, base + SCALES} <= names:
                    raise damaged(path, f"{base} lacks a part")
                found = _matrix(path, file, base, shapes[base])
                yield base, found.type(types.get(base, found.dtype))


def _matrix(path: Path, file: Any, name: str, shape: tuple[int, int]) -> Tensor:
    coded, values, scales = (file.get_tensor(name + mark) for mark in (CODES, VALUES, SCALES))
    right = (
        (coded.dtype, values.dtype, scales.dtype) == (torch.uint8, torch.float32, torch.float16)
        and values.dim() == 1
        and len(values) in _BITS_BY_VALUES
        and scales.shape == shape[:1]
    )
    if not right:
        raise damaged(path, f"the parts of {name} do not fit each other")
    bits = _BITS_BY_VALUES[len(values)]
    codes = decode(coded.numpy().tobytes(), shape[0] * shape[1], bits).reshape(shape)
    return torch.from_numpy(Clustered(codes, values.numpy(), scales.numpy()).matrix())


def _shapes(path: Path, metadata: dict[str, str]) -> dict[str, tuple[int, int]]:
    if metadata.get("packed") != FORMAT:
        raise damaged(path, f"it is not of the format {FORMAT}")
    try:
        found = json.loads(metadata["shapes"])
        shapes = {str(name): (shape[0], shape[1]) for name, shape in found.items()}
        whole = all(type(n) is int and n > 0 for shape in shapes.values() for n in shape)
        right = whole and all(len(shape) == 2 for shape in found.values())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        raise damaged(path, "its list of shapes cannot be read") from None
    if not right:
        raise damaged(path, "its list of shapes is none")
    return shapes


def _types(path: Path, metadata: dict[str, str]) -> dict[str, torch.dtype]:
    try:
        found = json.loads(metadata["types"])
        return {str(name): _TYPES[kind] for name, kind in found.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise damaged(path, "its list of types cannot be read") from None


_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def opened(path: Path) -> Any:
    """Open a file in safetensors' format, or say that it is damaged."""
    try:
        return safe_open(str(path), "pt")
    except Exception as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error of a file that is not what it should be."""
    return CheckpointError(
        f"{path} is damaged: {what}", "copy the folder again, or make it once more"
    )
