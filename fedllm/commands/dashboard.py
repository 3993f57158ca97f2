"""``fedllm dashboard``: runs on a page of this machine, live."""

from __future__ import annotations

import threading
from pathlib import Path

import typer


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
    from fedllm.runs.shelf import found_in

    where = folders or [Path("runs")]
    found_in(where)
    from fedllm.dashboard.listening import opened, show
    from fedllm.processes import leave, stop_on_signals

    listening = opened(port, "--port")
    stop = stop_on_signals()
    # Not into the log's form: it is an address to open.
    show(where, listening, stop, lambda page: print(f"open {page} (Ctrl-C ends it)", flush=True))
    if threading.active_count() > 1:
        leave(stop.exit_code)
    raise typer.Exit(stop.exit_code)
