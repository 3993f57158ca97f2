"""A checkpoint's folder in as few bytes as it takes: clustered, coded, exactly read back.

Deep compression (Han, Mao, Dally 2016) of what `fedllm compress prune` left: each large matrix
becomes codes of four bits, their values, and a scale a row (`clustering`), and the codes are
written in Huffman's code (`coding`). Everything else is kept in 16 bits where these hold it. What
is read back are the clustered weights, in the type that they had; clustering loses a little.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor

from fedllm.compression.clustering import VALUES, Clustered, cluster
from fedllm.compression.coding import decode, encode, entropy_bits
from fedllm.errors import CheckpointError, ConfigError
from fedllm.files import atomic_directory, write_bytes
from fedllm.models.contents import EXPORTED, check_contents, read_object
from fedllm.models.exported import write_exported

SUFFIX, ENDING = ".packed", ".safetensors"
_WEIGHTS = f"model*{ENDING}"
_FORMAT = "fedllm.packed.v1"
_CODES, _VALUES, _SCALES = "#codes", "#values", "#scales"
# Below it, a matrix's list of values costs more than its codes save.
_SMALLEST = 4096
_MOST_VALUES = 2**36


@dataclass(slots=True)
class Sizes:
    """Bytes of a packed folder, each counted once; they add up to what lies on the disk.

    Attributes
    ----------
    codes, values, scales : int
        Of matrices that were coded.
    plain : int
        Tensors that were not.
    names : int
        What says which tensor lies where.
    files : int
        Configuration, tokenizer and whatever else lies in the folder.
    coded_weights, plain_weights : int
        How many weights were coded, and how many not.
    entropy_bits : float
        The fewest bits that codes could take in any code that knows their frequencies.
    """

    codes: int = 0
    values: int = 0
    scales: int = 0
    plain: int = 0
    names: int = 0
    files: int = 0
    coded_weights: int = 0
    plain_weights: int = 0
    entropy_bits: float = 0.0

    @property
    def weights_bytes(self) -> int:
        """What the files of weights take."""
        return self.codes + self.values + self.scales + self.plain + self.names

    @property
    def total_bytes(self) -> int:
        """What the folder takes."""
        return self.weights_bytes + self.files

    @property
    def times_smaller(self) -> float:
        """How often the files of weights fit into the same weights in float32."""
        return 4 * (self.coded_weights + self.plain_weights) / self.weights_bytes


@dataclass(slots=True)
class _Packed:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)


def pack(folder: Path, out: Path) -> Sizes:
    """Pack a checkpoint's folder into a new one.

    Parameters
    ----------
    folder : Path
        Of a Hugging Face checkpoint, whole or in shards.
    out : Path
        Must not be there.

    Raises
    ------
    ConfigError
        If ``out`` is there, or ``folder`` holds no weights, or is packed already.
    CheckpointError
        If a file of weights is damaged, or holds numbers that are none.
    StorageError
        If the disk is full; ``out`` is not there then.
    """
    _require_new(out)
    weights = sorted(folder.glob(_WEIGHTS))
    if any(path.name.endswith(SUFFIX + ENDING) for path in weights):
        raise ConfigError(f"{folder} is packed already", "name the folder that it was made of")
    if not weights:
        raise ConfigError(
            f"{folder} holds no weights in safetensors",
            "give the folder of a whole model, as fedllm export RUN --format merged writes it",
        )
    check_contents(folder)
    sizes = Sizes()
    with atomic_directory(out) as new:
        for path in weights:
            content = _packed_file(path, sizes)
            write_bytes(new / f"{path.name.removesuffix(ENDING)}{SUFFIX}{ENDING}", content)
        _copy_others(folder, new, weights)
        sizes.files = sum(path.stat().st_size for path in new.iterdir()) - sizes.weights_bytes
    return sizes


def unpack(folder: Path, out: Path) -> None:
    """Make a plain checkpoint's folder of a packed one.

    Raises
    ------
    ConfigError
        If ``out`` is there, or ``folder`` is not packed.
    CheckpointError
        If a file is damaged.
    StorageError
        If the disk is full; ``out`` is not there then.
    """
    _require_new(out)
    packed = sorted(folder.glob(f"*{SUFFIX}{ENDING}"))
    if not packed:
        raise ConfigError(
            f"{folder} is not packed", "give a folder that fedllm compress pack wrote"
        )
    with atomic_directory(out) as new:
        for path in packed:
            tensors = dict(read_packed(path))
            name = path.name.removesuffix(SUFFIX + ENDING) + ENDING
            write_bytes(new / name, format_safetensors(tensors, {"format": "pt"}))
        _copy_others(folder, new, packed)


def read_packed(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Read a packed file's tensors one after another, each in the type that it had.

    Raises
    ------
    CheckpointError
        If it is damaged, or says of itself what cannot be.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        shapes, types = _shapes(path, metadata), _types(path, metadata)
        names = set(file.keys())
        for name in sorted(names):
            base, mark, _ = name.partition("#")
            if not mark:
                found = file.get_tensor(name)
                yield name, found.type(types.get(name, found.dtype))
            elif name == base + _CODES:
                if base not in shapes or not {base + _VALUES, base + _SCALES} <= names:
                    raise _damaged(path, f"{base} lacks a part")
                found = _matrix(path, file, base, shapes[base])
                yield base, found.type(types.get(base, found.dtype))


def _packed_file(path: Path, sizes: Sizes) -> bytes:
    packed = _Packed()
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        for name in sorted(file.keys()):
            _add(path, name, file.get_tensor(name), packed, sizes)
    metadata |= {"format": "pt", "packed": _FORMAT, "shapes": json.dumps(packed.shapes)}
    metadata["types"] = json.dumps(packed.types)
    content = format_safetensors(packed.tensors, metadata)
    held = sum(tensor.nbytes for tensor in packed.tensors.values())
    sizes.names += len(content) - held
    return content


def _add(path: Path, name: str, tensor: Tensor, packed: _Packed, sizes: Sizes) -> None:
    if "#" in name:
        raise CheckpointError(
            f"{path}: a tensor is called {name!r:.80}", "give the tensor another name"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinity", "use a model whose training ended well"
        )
    packed.types[name] = str(tensor.dtype).removeprefix("torch.")
    if tensor.dim() != 2 or tensor.numel() < _SMALLEST or not tensor.is_floating_point():
        kept = _short(tensor)
        packed.tensors[name] = kept
        sizes.plain += kept.nbytes
        sizes.plain_weights += kept.numel()
        return
    found = cluster(tensor.float().numpy())
    codes = np.frombuffer(encode(found.codes.reshape(-1)), dtype=np.uint8)
    parts = (torch.from_numpy(part.copy()) for part in (codes, found.values, found.scales))
    names = (name + mark for mark in (_CODES, _VALUES, _SCALES))
    packed.tensors |= dict(zip(names, parts, strict=True))
    packed.shapes[name] = list(tensor.shape)
    sizes.codes += codes.nbytes
    sizes.values += found.values.nbytes
    sizes.scales += found.scales.nbytes
    sizes.coded_weights += tensor.numel()
    sizes.entropy_bits += entropy_bits(found.codes)


def _short(tensor: Tensor) -> Tensor:
    """Return a tensor in float16 where that holds its numbers, else as it is."""
    if tensor.dtype != torch.float32:
        return tensor.contiguous()
    short = tensor.type(torch.float16)
    small = tensor.abs() < torch.finfo(torch.float16).smallest_normal
    holds = bool(torch.isfinite(short).all()) and bool((~small | (tensor == 0)).all())
    return short if holds else tensor.contiguous()


def _matrix(path: Path, file: Any, name: str, shape: tuple[int, int]) -> Tensor:
    coded, values, scales = (file.get_tensor(name + mark) for mark in (_CODES, _VALUES, _SCALES))
    right = (
        (coded.dtype, values.dtype, scales.dtype) == (torch.uint8, torch.float32, torch.float16)
        and values.shape == (VALUES,)
        and scales.shape == shape[:1]
    )
    if not right:
        raise _damaged(path, f"the parts of {name} do not fit each other")
    codes = decode(coded.numpy().tobytes(), shape[0] * shape[1]).reshape(shape)
    return torch.from_numpy(Clustered(codes, values.numpy(), scales.numpy()).matrix())


def _shapes(path: Path, metadata: dict[str, str]) -> dict[str, tuple[int, int]]:
    if metadata.get("packed") != _FORMAT:
        raise _damaged(path, f"it is not of the format {_FORMAT}")
    try:
        found = json.loads(metadata["shapes"])
        shapes = {str(name): (shape[0], shape[1]) for name, shape in found.items()}
        whole = all(type(n) is int and n > 0 for shape in shapes.values() for n in shape)
        right = whole and all(len(shape) == 2 for shape in found.values())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
        raise _damaged(path, "its list of shapes cannot be read") from None
    if not right or any(rows * columns > _MOST_VALUES for rows, columns in shapes.values()):
        raise _damaged(path, "its list of shapes is none")
    return shapes


def _types(path: Path, metadata: dict[str, str]) -> dict[str, torch.dtype]:
    try:
        found = json.loads(metadata["types"])
        return {str(name): _TYPES[kind] for name, kind in found.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise _damaged(path, "its list of types cannot be read") from None


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


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), "pt")
    except Exception as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: {what}", "copy the folder again, or make it once more"
    )


def _require_new(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} is there already", "name another folder, or remove it")


def _copy_others(folder: Path, new: Path, weights: list[Path]) -> None:
    """Copy all files but those of weights, and say what the new folder consists of."""
    for path in sorted(folder.iterdir()):
        if path not in weights and path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, new / path.name)
    if (new / EXPORTED).exists():
        told = read_object(new / EXPORTED)
        write_exported(new, str(told.pop("format", "")), told)
