"""``fedllm dashboard``: runs on a page of this machine, live."""

from __future__ import annotations

import threading
from pathlib import Path
from socket import socket

import typer

from fedllm.errors import ConfigError


def dashboard(
    folders: list[Path] = typer.Argument(
        None, metavar="[FOLDER]...", help="Runs, or folders of runs; 'runs' if left out."
    ),
    port: int = typer.Option(
        8350, min=0, max=65535, help="Port of loopback to listen on; 0 takes a free one."
    ),
) -> None:
    """Show runs on a page of this machine, live, until stopped.

    Rounds, curves, sites, privacy, cost, signatures and files of a run, and several runs beside one
    another. Runs may be under way, finished or broken off; also those of a coordinator, in
    KIT/state/runs. Nothing is changed through the page, and it loads nothing from another host.
    /metrics has the figures for Prometheus.
    """
    from fedllm.dashboard.application import Dashboard
    from fedllm.dashboard.watching import Runs
    from fedllm.processes import leave, say, stop_on_signals
    from fedllm.runs.shelf import found_in
    from fedllm.serving.server import serve

    where = folders or [Path("runs")]
    found_in(where)
    stop = stop_on_signals()
    with _listening(port) as listening:
        # Not into the log's form: it is an address to open.
        serve(
            Dashboard(Runs(where), say),
            listening,
            None,
            stop,
            lambda own: print(f"open http://127.0.0.1:{own}/ (Ctrl-C ends it)", flush=True),
            2.0,
        )
    if threading.active_count() > 1:
        leave(stop.exit_code)
    raise typer.Exit(stop.exit_code)


def _listening(port: int) -> socket:
    from fedllm.serving.server import Address, listening_socket

    try:
        return listening_socket(Address("127.0.0.1", port))
    except ConfigError as error:
        raise ConfigError(
            error.message,
            "another dashboard may have it; take another port with --port (0: a free one)",
        ) from None
