"""The files of a checkpoint's folder: which of them count, and what must not lie there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.canonical import read_object as read_json_object
from fedllm.config import Precision, Quantization
from fedllm.errors import CheckpointError, FedllmError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What an export was made of; see `fedllm.models.exported`.
EXPORTED = "export.json"

FilesState = tuple[tuple[str, int, int, int, int], ...]

# What no reader of a checkpoint opens: words and pictures about it, the same weights in formats
# that are not read here, and code, which is not run. Hidden files are left out too. A longer
# name counts: a library may find what it looks for anywhere in one.
_UNREAD = re.compile(
    r".*\.(md|png|jpe?g|gif|svg|pdf|py|pyc|bin|pth?|pkl|pickle|ckpt|h5|msgpack|ot|onnx|gguf)"
    r"|(LICENSE|NOTICE|USE_POLICY)(\.txt)?",
    re.IGNORECASE,
)
_BLOB = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_EARLIER_SUFFIXES = (".safetensors", "config.json", "tokenizer.json", "vocab.txt", "merges.txt")
_MAX_WORDS = 300
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
# What may lead a tokenizer's class, of today or of a later version, to a file: its words or a
# path to them, arguments of its constructor by place, and arguments for the libraries below it.
_NAMES_A_FILE = re.compile(r"vocab|merge|file|path|(^|_)dir|args|inputs|url", re.IGNORECASE)
# Left by older versions of transformers in many models; overwritten or ignored by this one.
_NEVER_OPENED = frozenset({"special_tokens_map_file", "name_or_path"})


def held_as(fingerprint: str, quantization: Quantization, precision: Precision) -> str:
    """Return what identifies a base model whose weights are held so.

    What is rounded is rounded from numbers of a precision: other ones give other integers.

    Parameters
    ----------
    fingerprint : str
        SHA-256 of the checkpoint's files; what is returned where nothing is quantised.
    """
    if quantization == "none":
        return fingerprint
    text = f"fedllm.quantized.v2\n{quantization}\n{precision}\n{fingerprint}\n"
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """SHA-256 of what a checkpoint's folder holds, wherever it lies.

    Attributes
    ----------
    current : str
        Over names and contents of all files that count, those in sub-folders included.
    earlier : str
        As fedllm made it before (``fedllm.checkpoint.v1``), over weights, configuration and
        some of the tokenizer's files; only to tell what an old one meant.
    """

    current: str
    earlier: str


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads ``what`` into a `CheckpointError`."""
    try:
        yield
    except (FedllmError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic inside a Rust library is no Exception
        words = f"{type(error).__name__}: {error}".strip(": ")
        cut = words if len(words) <= _MAX_WORDS else f"{words[:_MAX_WORDS]} ..."
        raise CheckpointError(f"{what} ({cut})", remedy) from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object as `fedllm.canonical.read_json` does.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    with reading(f"{path} is damaged", "copy the checkpoint again"):
        return read_json_object(path.read_bytes())


def files_that_count(folder: Path) -> dict[str, Path]:
    """List the files by their names below ``folder``, sorted.

    All files count, in sub-folders too (there also hidden ones), but documentation and pictures,
    code, weights in other formats than safetensors, and hidden files of the folder itself.

    Raises
    ------
    CheckpointError
        If any entry is a link that leaves the folder, or a file that counts is no regular one.
    """
    found: dict[str, Path] = {}
    root = folder.resolve()
    with reading(f"{folder} cannot be listed", "let the user that runs fedllm read it"):
        for place, folders, names in os.walk(root, onerror=_give_up):
            # Below folders that transformers searches by pattern, hidden files are read too.
            searched = Path(place) != root
            for name in sorted((*folders, *names)):
                path = Path(place, name)
                inner = path.relative_to(root).as_posix()
                if path.is_symlink():
                    _check_link(path, root, inner, folder)
                hidden = name.startswith(".") and not (searched and name in names)
                if name in folders or hidden or _UNREAD.fullmatch(name):
                    continue
                if not stat.S_ISREG(path.stat().st_mode):
                    raise CheckpointError(
                        f"{folder}: {inner} is no regular file", "remove it from the folder"
                    )
                found[inner] = path
            folders[:] = sorted(name for name in folders if not name.startswith("."))
    return dict(sorted(found.items()))


def _give_up(error: OSError) -> None:
    raise error


def _check_link(path: Path, root: Path, inner: str, folder: Path) -> None:
    target = path.resolve()
    if _is_blob(target, root):
        return
    if target.is_dir() or not target.is_relative_to(root):
        raise CheckpointError(
            f"{folder}: {inner} is a link to what lies elsewhere",
            f"copy the folder with its contents (cp -rL {folder} NEW) and name the copy",
        )


def _is_blob(target: Path, root: Path) -> bool:
    """Tell whether a link of a hub cache's snapshot leads to a file of the same repository.

    There ``models--ORG--NAME/snapshots/REVISION/`` has the names, and ``blobs`` beside it the
    files, each under its digest.
    """
    repository = root.parent.parent
    return (
        root.parent.name == "snapshots"
        and repository.name.startswith("models--")
        and target.parent == repository / "blobs"
        and _BLOB.fullmatch(target.name) is not None
        and target.is_file()
    )


def state(folder: Path) -> FilesState:
    """Return name, size, time of change and place on disk of all files that count.

    Another state may be another model; reading it costs nothing next to hashing gigabytes.
    """
    stats = ((name, path.stat()) for name, path in files_that_count(folder).items())
    return tuple((n, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for n, s in stats)


def fingerprints(folder: Path) -> Fingerprints:
    """Return what identifies a checkpoint; reads each file once.

    Raises
    ------
    CheckpointError
        If a file cannot be read, or is a link that leaves the folder.
    """
    current = hashlib.sha256(b"fedllm.checkpoint.v2\n")
    earlier = hashlib.sha256(b"fedllm.checkpoint.v1\n")
    for name, path in files_that_count(folder).items():
        with reading(f"{path} cannot be read", "copy the checkpoint again"), path.open("rb") as f:
            content = hashlib.file_digest(f, "sha256").hexdigest()
        # In JSON, so that no name can look like the end of one line and a second one.
        current.update(f"{json.dumps(name)} {content}\n".encode())
        if "/" not in name and name.endswith(_EARLIER_SUFFIXES):
            earlier.update(f"{name} {content}\n".encode())
    return Fingerprints(current.hexdigest(), earlier.hexdigest())


def check_contents(folder: Path, *, weights: bool = True) -> None:
    """Refuse a folder of which a library would load more than the model that it names.

    Parameters
    ----------
    weights : bool
        Whether the folder must hold weights, and not a tokenizer alone.

    Raises
    ------
    CheckpointError
        If a file is a link that leaves the folder, an index names other files, an adapter lies
        beside the weights, or the tokenizer asks for code of its own.
    """
    names = files_that_count(folder)
    if EXPORTED in names:
        _check_exported(folder, names)
    for name in _TOKENIZER_SETTINGS:
        if name in names:
            _check_tokenizer_settings(folder / name)
    if not weights:
        return
    if "adapter_config.json" in names:
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json) beside the weights",
            "merge it into the weights first (peft: merge_and_unload, then save_pretrained), or "
            "take adapter_config.json out of the folder if the base model alone is meant",
        )
    if any(_DISTRIBUTED.fullmatch(name) for name in names):
        raise CheckpointError(
            f"{folder} holds a distributed checkpoint (shard-*.safetensors)",
            "save it whole: load it with transformers, then save_pretrained",
        )
    if INDEX in names:
        _check_index(folder, names)
    elif WEIGHTS not in names:
        there = ", ".join(name for name in names if name.endswith(".safetensors"))
        raise CheckpointError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}" + (f", only {there}" if there else ""),
            "save the model with save_pretrained; pickled .bin files can run code and are not read",
        )


def _check_exported(folder: Path, names: dict[str, Path]) -> None:
    """Refuse an export of which files are missing or were cut short; see `write_exported`."""
    told = read_object(folder / EXPORTED).get("files")
    if not isinstance(told, dict):
        raise CheckpointError(f"{folder / EXPORTED} is damaged", "repeat fedllm export")
    for name, size in told.items():
        if name not in names or names[name].stat().st_size != size:
            found = "missing" if name not in names else f"not of {size} bytes"
            raise CheckpointError(
                f"{folder} is not the whole export: {name} is {found}",
                "copy the folder again, or repeat fedllm export",
            )


def _check_index(folder: Path, names: dict[str, Path]) -> None:
    index = read_object(folder / INDEX)
    places, about = index.get("weight_map"), index.get("metadata")
    if not isinstance(places, dict) or not places or not isinstance(about, dict):
        raise CheckpointError(
            f"{folder / INDEX} is damaged: weight_map or metadata is missing",
            "copy the checkpoint again",
        )
    for place in sorted({str(value) for value in places.values()}):
        if place not in names or "/" in place or not place.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / INDEX} names {place!r}, which is no .safetensors file of this folder",
                "copy the checkpoint again, all its .safetensors files with it",
            )


def _check_tokenizer_settings(path: Path) -> None:
    values = read_object(path)
    if values.get("auto_map"):
        raise CheckpointError(
            f"{path} asks for code of its own (auto_map), which is not run",
            "use a checkpoint whose tokenizer transformers has itself",
        )
    if values.get("fast_tokenizer_files"):
        # transformers would choose one of them, by its own version and part of the name.
        raise CheckpointError(
            f"{path}: fast_tokenizer_files is not supported: which file is read would depend on "
            "the version of a library",
            "remove the key in a copy of the folder that all parties use; tokenizer.json is read",
        )
    # transformers hands each key to the tokenizer's class, and some open what they are given.
    for key, value in values.items():
        plain = isinstance(value, bool | int | float) or not value or key in _NEVER_OPENED
        if not plain and _NAMES_A_FILE.search(key):
            raise CheckpointError(
                f"{path}: {key} could make a library read a file that is no part of the model",
                f"remove {key} in a copy of the folder that all parties use; a tokenizer's files "
                "are found by their names",
            )
