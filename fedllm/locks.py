"""Lock files. The system frees a lock when the process that holds it dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedllm.errors import ConfigError

_TRIES, _WAIT_S = 10, 0.05


@contextmanager
def exclusive(path: Path, busy: str, remedy: str) -> Iterator[None]:
    """Hold a lock file as long as the block runs, or refuse after half a second.

    Parameters
    ----------
    path : Path
        The lock file, made if need be; its folder must exist.
    busy, remedy : str
        What is said when another process holds it.

    Raises
    ------
    ConfigError
        If another process holds it.
    """
    with path.open("a") as lock:
        # Whoever asks `is_held` holds it for a moment.
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if left == 0:
                    raise ConfigError(busy, remedy) from None
            time.sleep(_WAIT_S)
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold a lock file as long as the block runs; waits until no other process holds it."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    """Tell whether a process holds a lock file."""
    try:
        # Whoever lays a pipe in its place makes nobody wait.
        with open(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
