"""``fedllm server``: what the coordinator runs."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import options
from fedllm.commands.at_rest import rekey_server
from fedllm.commands.help import CommandGroup
from fedllm.commands.joining import add_joining_commands
from fedllm.commands.released import release
from fedllm.words import safe, table

if TYPE_CHECKING:
    from fedllm.processes import Stop

app = CommandGroup(help="The coordinator: join a federation, serve it.", no_args_is_help=True)
add_joining_commands(app, "coordinator")
app.command()(release)
app.command("rekey")(rekey_server)

_KIT = typer.Option(..., metavar="KIT", help="The coordinator's kit (the folder with its keys).")


@app.command()
def start(
    kit: Path = _KIT,
    listen: str | None = typer.Option(
        None,
        metavar="HOST:PORT",
        help="Address and port to listen on; when left out, all addresses, and the kit's port.",
    ),
    dashboard: int | None = typer.Option(
        None,
        metavar="PORT",
        min=0,
        max=65535,
        help="Also show the runs on a page, live, on this port of loopback; 0 takes a free one.",
    ),
) -> None:
    """Serve the federation and carry its runs until stopped."""
    from fedllm.at_rest.sources import nobody
    from fedllm.identity.kits import read_kit, split_address
    from fedllm.processes import keep_memory_private, say, stop_on_signals
    from fedllm_server.sealing import vault_of
    from fedllm_server.service import Service

    keep_memory_private()
    found = read_kit(kit.absolute(), "coordinator")
    host, port = split_address(found.address) if listen is None else _asked(listen)
    if listen is None and host not in ("127.0.0.1", "localhost", "::1"):
        # An address of IPv6 is reached on all interfaces of IPv6, which take IPv4 as well.
        host = "::" if ":" in host else "0.0.0.0"  # noqa: S104
    # Where checkpoints are sealed, the process that carries a run opens the same, unasked.
    vault_of(found.folder, nobody)
    service = Service(found, (host, port), say)
    stop = stop_on_signals()
    with _dashboard(found.folder, dashboard, stop):
        service.run(stop)
    sys.exit(stop.exit_code)


@contextmanager
def _dashboard(kit: Path, port: int | None, stop: Stop) -> Iterator[None]:
    """Show the coordinator's runs in a process of its own, which has none of its keys."""
    if port is None:
        yield
        return
    from fedllm.dashboard.listening import opened
    from fedllm.processes import keep_running, say
    from fedllm_server.jobs import runs_folder

    # A port that is taken is told before anything is served.
    opened(port, "--dashboard").close()
    module, arguments = "fedllm.dashboard.listening", (str(runs_folder(kit)), str(port))
    beside = threading.Thread(target=keep_running, args=(module, arguments, stop, say))
    beside.start()
    try:
        yield
    finally:
        stop.set()
        beside.join()


def _asked(listen: str) -> tuple[str, int]:
    from fedllm.errors import ConfigError
    from fedllm.identity.kits import split_address

    try:
        host, port = split_address(listen)
    except ValueError:
        host, port = "", -1
    if not host or not 0 <= port < 1 << 16:
        raise ConfigError(f"--listen {listen} is not HOST:PORT", "write 0.0.0.0:9092 or [::]:9092")
    return host, port


@app.command()
def status(kit: Path = _KIT, json_output: bool = options.JSON) -> None:
    """Show who is connected, and which runs there are.

    Exit code 1 if no coordinator runs.
    """
    from fedllm.canonical import read_object
    from fedllm.errors import ConfigError
    from fedllm.locks import is_held
    from fedllm_server.jobs import coordinator_lock

    try:
        found = read_object((kit / "state" / "status.json").read_bytes())
    except (OSError, ValueError):
        raise ConfigError(
            f"no coordinator was ever started with {kit}", f"fedllm server start --kit {kit}"
        ) from None
    found["running"] = is_held(coordinator_lock(kit))
    if json_output:
        print(json.dumps(found, indent=2))
    else:
        _print_status(found)
    sys.exit(0 if found["running"] else 1)


def _print_status(found: dict[str, Any]) -> None:
    from rich.console import Console

    from fedllm.identity.titles import shown

    console = Console()
    state = f"running since {found['started']}" if found["running"] else "NOT running"
    console.print(
        f"Coordinator of {found['federation']} at {found['address']}: {state}, "
        f"roster version {found['roster_version']}",
        markup=False,
        highlight=False,
    )
    nodes = table("Party", "Connected", "Since")
    for node in found["nodes"]:
        here = node["online"] and found["running"]
        title = node.get("title")
        name = shown(node["name"], {node["name"]: title} if title else {})
        nodes.add_row(safe(name), "yes" if here else "no", node["since"] or "never")
    console.print(nodes)
    runs = table("Run", "Status", "Rounds", "Submitted")
    for run in found["runs"]:
        rounds = f"{run['round']} of {run['rounds']}"
        runs.add_row(safe(run["name"]), run["status"], rounds, run["submitted"])
    console.print(runs)
