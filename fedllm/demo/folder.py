"""The demo's folder: taken for a new demo, or for one that goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedllm.canonical import read_object
from fedllm.errors import ConfigError
from fedllm.files import write_json

_MARK = "made-by-fedllm-demo"


def is_demo(out: Path) -> bool:
    """Tell whether ``out`` holds a demo, finished or not."""
    return (out / _MARK).exists()


def claim(out: Path, quick: bool, resume: bool) -> None:
    """Take a folder for a demo; an earlier one in it goes on with ``resume`` and else is replaced.

    Raises
    ------
    ConfigError
        If the folder holds something else, or no demo of that length to go on with.
    """
    if resume:
        _require_same(out, quick)
        return
    if out.exists() and any(out.iterdir()):
        if not is_demo(out):
            raise ConfigError(f"{out} is not empty and no earlier demo", "choose another --out")
        shutil.rmtree(out)
    write_json(out / _MARK, {"replaced": "by the next demo without --resume", "quick": quick})


def _require_same(out: Path, quick: bool) -> None:
    if not is_demo(out):
        raise ConfigError(f"there is no demo to resume in {out}", "leave out --resume")
    try:
        before = read_object((out / _MARK).read_bytes())["quick"]
    except (OSError, ValueError, KeyError):
        raise ConfigError(
            f"the demo in {out} was begun by an earlier version of fedllm",
            "leave out --resume: it is replaced by a new one",
        ) from None
    if before != quick:
        raise ConfigError(
            f"the demo in {out} was begun {'with' if before else 'without'} --quick",
            "resume it in the same way, or leave out --resume: it is replaced by a new one",
        )
