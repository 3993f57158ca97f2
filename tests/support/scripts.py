"""Files of an example, which are scripts and no package, as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

_NAMES = ("prepare", "score", "table", "run")


@contextmanager
def scripts_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], ModuleType]]:
    """Give what imports one of a folder's scripts; those of another folder come back after it."""
    monkeypatch.syspath_prepend(str(folder))
    before = {name: sys.modules.pop(name, None) for name in _NAMES}
    yield importlib.import_module
    for name in _NAMES:
        sys.modules.pop(name, None)
        if before[name] is not None:
            sys.modules[name] = before[name]
