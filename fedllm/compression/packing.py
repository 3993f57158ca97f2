"""A checkpoint's folder in as few bytes as it takes: clustered, coded, exactly read back.

Deep compression (Han, Mao, Dally 2016) of what `fedllm compress prune` left: each large matrix
becomes codes of few bits, their values, and a scale a row (`clustering`), and the codes are written
in Huffman's code (`coding`). How many bits is for each matrix to say: all begin with the fewest,
and those get more that win the most by them, for as long as the whole stays as small as was asked.
Other tensors are kept in 16 bits where these hold them, and the tokenizer's files are made smaller
by zlib. What is read back are the clustered weights,
in the type that they had; clustering loses a little.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as format_safetensors
from torch import Tensor

from fedllm.compression.finer import Way, chosen_within, ways_of
from fedllm.compression.fitting import Shape, check_fits
from fedllm.compression.packed_file import (
    BITS,
    CODES,
    FORMAT,
    SCALES,
    VALUES,
    opened,
    packed_shapes,
    plain_shapes,
    read_packed,
)
from fedllm.compression.packed_words import has_words, is_short, write_long, write_short
from fedllm.errors import CheckpointError, ConfigError
from fedllm.files import atomic_directory, require_new, write_bytes
from fedllm.models.contents import EXPORTED, check_contents, read_object
from fedllm.models.exported import write_exported

SUFFIX, ENDING = ".packed", ".safetensors"
_WEIGHTS = f"model*{ENDING}"
# Below it, a matrix's list of values costs more than its codes save.
_SMALLEST = 4096
# What the header says of a tensor beside its name, and of a file, at most.
_ENTRY, _HEADER = 120, 512


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
    files_before : int
        What these took in the folder that was packed.
    coded_weights, plain_weights : int
        How many weights were coded, and how many not.
    entropy_bits : float
        The fewest bits that codes could take in any code that knows their frequencies.
    matrices : dict of int to int
        How many have codes of so many bits.
    """

    codes: int = 0
    values: int = 0
    scales: int = 0
    plain: int = 0
    names: int = 0
    files: int = 0
    files_before: int = 0
    coded_weights: int = 0
    plain_weights: int = 0
    entropy_bits: float = 0.0
    matrices: dict[int, int] = field(default_factory=lambda: dict.fromkeys(BITS, 0))

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
        return self._plain_bytes / self.weights_bytes

    @property
    def folder_times_smaller(self) -> float:
        """How often the folder fits into the one that was packed, with its weights in float32."""
        return (self._plain_bytes + self.files_before) / self.total_bytes

    @property
    def _plain_bytes(self) -> int:
        return 4 * (self.coded_weights + self.plain_weights)


@dataclass(slots=True)
class _File:
    """What is to be written in place of a file of weights."""

    metadata: dict[str, str]
    plain: dict[str, Tensor] = field(default_factory=dict)
    ways: dict[str, list[Way]] = field(default_factory=dict)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def words(self) -> dict[str, str]:
        """Return what its header says beside names and places."""
        own = {"format": "pt", "packed": FORMAT, "shapes": json.dumps(self.shapes)}
        return self.metadata | own | {"types": json.dumps(self.types)}

    def most_names_bytes(self) -> int:
        names = [*self.plain, *(name + VALUES for name in self.ways for _ in range(3))]
        entries = sum(len(name.encode()) + _ENTRY for name in names)
        return _HEADER + entries + len(json.dumps(self.words()))


def pack(folder: Path, out: Path, times_smaller: float = 8.0) -> Sizes:
    """Pack a checkpoint's folder into a new one.

    Parameters
    ----------
    folder : Path
        Of a Hugging Face checkpoint, whole or in shards.
    out : Path
        Must not be there.
    times_smaller : float
        Than in float32: as small as weights must be at least, where the fewest bits reach it. What
        is left until then goes into finer values.

    Raises
    ------
    ConfigError
        If ``out`` is there, or ``folder`` holds no weights, or is packed already.
    CheckpointError
        If a file of weights is damaged, holds numbers that are none, or tensors that the model of
        ``config.json`` does not have, or in other shapes.
    StorageError
        If the disk is full; ``out`` is not there then.
    """
    require_new(out)
    weights = sorted(folder.glob(_WEIGHTS))
    if any(path.name.endswith(SUFFIX + ENDING) for path in weights):
        raise ConfigError(f"{folder} is packed already", "name the folder that it was made of")
    if not weights:
        raise ConfigError(
            f"{folder} holds no weights in safetensors",
            "give the folder of a whole model, as fedllm export RUN --format merged writes it",
        )
    check_contents(folder)
    # Else it could not be unpacked.
    check_fits(folder, _all(plain_shapes(path) for path in weights))
    sizes, files = Sizes(), {path: _read(path) for path in weights}
    chosen = _chosen(files.values(), times_smaller)
    with atomic_directory(out) as new:
        for path, file in files.items():
            content = _packed_file(file, chosen, sizes)
            write_bytes(new / f"{path.name.removesuffix(ENDING)}{SUFFIX}{ENDING}", content)
        others = _others(folder, weights)
        sizes.files_before = sum(path.stat().st_size for path in others)
        for path in others:
            if has_words(path):
                write_short(path, new)
            else:
                shutil.copyfile(path, new / path.name)
        _tell(new)
        sizes.files = sum(path.stat().st_size for path in new.iterdir()) - sizes.weights_bytes
    return sizes


def unpack(folder: Path, out: Path) -> None:
    """Make a plain checkpoint's folder of a packed one.

    Raises
    ------
    ConfigError
        If ``out`` is there, or ``folder`` is not packed.
    CheckpointError
        If a file is damaged, missing, or a link to what lies elsewhere; holds tensors that the
        model of ``config.json`` does not have, or in other shapes; or would take more memory than
        codes of its size can say.
    StorageError
        If the disk is full; ``out`` is not there then.
    """
    require_new(out)
    packed = sorted(folder.glob(f"*{SUFFIX}{ENDING}"))
    if not packed:
        raise ConfigError(
            f"{folder} is not packed", "give a folder that fedllm compress pack wrote"
        )
    # What is written of it is said to be whole again.
    check_contents(folder, weights=False)
    check_fits(folder, _all(packed_shapes(path) for path in packed))
    with atomic_directory(out) as new:
        for path in packed:
            tensors = dict(read_packed(path))
            name = path.name.removesuffix(SUFFIX + ENDING) + ENDING
            write_bytes(new / name, format_safetensors(tensors, {"format": "pt"}))
        for path in _others(folder, packed):
            if is_short(path):
                write_long(path, new)
            else:
                shutil.copyfile(path, new / path.name)
        _tell(new)


def _all(shapes: Iterable[dict[str, Shape]]) -> dict[str, Shape]:
    return {name: shape for found in shapes for name, shape in found.items()}


def _read(path: Path) -> _File:
    with opened(path) as file:
        found = _File(dict(file.metadata() or {}))
        for name in sorted(file.keys()):
            _add(path, name, file.get_tensor(name), found)
    return found


def _add(path: Path, name: str, tensor: Tensor, found: _File) -> None:
    if "#" in name:
        raise CheckpointError(
            f"{path}: a tensor is called {name!r:.80}", "give the tensor another name"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinity", "use a model whose training ended well"
        )
    found.types[name] = str(tensor.dtype).removeprefix("torch.")
    if tensor.dim() != 2 or tensor.numel() < _SMALLEST or not tensor.is_floating_point():
        found.plain[name] = _short(tensor)
        return
    found.shapes[name] = list(tensor.shape)
    found.ways[name] = list(ways_of(tensor.float().numpy()))


def _chosen(files: Iterable[_File], times_smaller: float) -> dict[int, Way]:
    """Return how each matrix is written, by the identity of its list of ways."""
    matrices: list[list[Way]] = []
    room = 0.0
    for file in files:
        matrices += file.ways.values()
        weights = sum(math.prod(shape) for shape in file.shapes.values())
        weights += sum(tensor.numel() for tensor in file.plain.values())
        room += 4 * weights / times_smaller - file.most_names_bytes()
        room -= sum(tensor.nbytes for tensor in file.plain.values())
    found = chosen_within(matrices, room)
    return {id(ways): way for ways, way in zip(matrices, found, strict=True)}


def _packed_file(file: _File, chosen: dict[int, Way], sizes: Sizes) -> bytes:
    tensors = dict(file.plain)
    for name, ways in file.ways.items():
        way = chosen[id(ways)]
        tensors[name + CODES] = torch.from_numpy(way.codes.copy())
        tensors[name + VALUES] = torch.from_numpy(way.values)
        tensors[name + SCALES] = torch.from_numpy(way.scales)
        sizes.codes += way.codes.nbytes
        sizes.values += way.values.nbytes
        sizes.scales += way.scales.nbytes
        sizes.coded_weights += math.prod(file.shapes[name])
        sizes.entropy_bits += way.entropy_bits
        sizes.matrices[way.bits] += 1
    sizes.plain += sum(tensor.nbytes for tensor in file.plain.values())
    sizes.plain_weights += sum(tensor.numel() for tensor in file.plain.values())
    content = format_safetensors(tensors, file.words())
    sizes.names += len(content) - sum(tensor.nbytes for tensor in tensors.values())
    return content


def _short(tensor: Tensor) -> Tensor:
    """Return a tensor in float16 where that holds its numbers, else as it is."""
    if tensor.dtype != torch.float32:
        return tensor.contiguous()
    short = tensor.type(torch.float16)
    small = tensor.abs() < torch.finfo(torch.float16).smallest_normal
    holds = bool(torch.isfinite(short).all()) and bool((~small | (tensor == 0)).all())
    return short if holds else tensor.contiguous()


def _others(folder: Path, weights: list[Path]) -> list[Path]:
    """Return all files of a folder but those of weights, and hidden ones."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path not in weights and path.is_file() and not path.name.startswith(".")
    ]


def _tell(new: Path) -> None:
    """Say what a new folder consists of."""
    if (new / EXPORTED).exists():
        told = read_object(new / EXPORTED)
        write_exported(new, str(told.pop("format", "")), told)
