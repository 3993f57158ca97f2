"""Folders of runs whose models write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.serving_runs import make_run


@pytest.fixture(scope="session")
def start(tiny_checkpoint, tmp_path_factory) -> Callable[..., Path]:
    """Make the folder of a finished run that learned to answer, once; nobody writes into it."""
    folders: dict[str, Path] = {}

    def make(kind: str = "llama", **settings: Any) -> Path:
        settings = {"model": {"max_length": 32}, **settings}
        key = json.dumps([kind, settings])
        if key not in folders:
            place = tmp_path_factory.mktemp("start")
            folders[key] = make_run(
                tiny_checkpoint(kind), place, "instruction", "start", **settings
            )
        return folders[key]

    return make
