"""The dashboard's address: opened by a command, or by a process beside a coordinator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import socket

from fedllm.dashboard.application import Dashboard
from fedllm.dashboard.watching import Runs
from fedllm.errors import ConfigError, FedllmError
from fedllm.processes import Stop, die_with_parent, say, stop_on_signals
from fedllm.serving.server import Address, listening_socket, serve

_HOST = "127.0.0.1"
_GRACE_S = 2.0


def opened(port: int, option: str) -> socket:
    """Open a port of loopback; 0 takes a free one.

    Raises
    ------
    ConfigError
        If it is taken; ``option`` chooses another.
    """
    try:
        return listening_socket(Address(_HOST, port))
    except ConfigError as error:
        raise ConfigError(
            error.message,
            f"take another port with {option} (0: a free one); another dashboard may have this one",
        ) from None


def show(folders: Sequence[Path], where: socket, stop: Stop, ready: Callable[[str], None]) -> None:
    """Show runs until ``stop`` is set; ``ready`` hears the page's address."""
    page = Dashboard(Runs(folders), say)
    serve(page, where, None, stop, lambda port: ready(f"http://{_HOST}:{port}/"), _GRACE_S)


def main() -> None:
    """Show the runs of a folder beside a coordinator; the arguments are PARENT FOLDER PORT."""
    parent, folder, port = sys.argv[1:]
    die_with_parent(int(parent))
    stop = stop_on_signals()
    try:
        where = opened(int(port), "--dashboard")
        show([Path(folder)], where, stop, lambda address: say(f"dashboard on {address}"))
    except FedllmError as error:
        say(f"no dashboard: {error}")
        sys.exit(error.exit_code)
    sys.exit(0)
