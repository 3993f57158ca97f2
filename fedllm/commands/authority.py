"""``fedllm authority``: what the key authority runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import typer

from fedllm.commands import options
from fedllm.commands.help import CommandGroup
from fedllm.commands.joining import add_joining_commands
from fedllm.visible import visible

app = CommandGroup(
    help="The key authority: join a federation, open its sums.", no_args_is_help=True
)
add_joining_commands(app, "authority")

_KIT = typer.Option(..., metavar="KIT", help="The key authority's kit (the folder with its keys).")


@app.command()
def start(kit: Path = _KIT) -> None:
    """Make the keys of rounds and open their sums until stopped.

    Connects to the coordinator; no port is opened on this machine.
    """
    from fedllm.identity.kits import read_kit
    from fedllm.processes import (
        keep_memory_private,
        keep_running,
        only_one,
        say,
        stop_on_signals,
    )

    keep_memory_private()
    stop = stop_on_signals()
    read_kit(kit, "authority")
    arguments = ["authority", str(kit.absolute())]
    with only_one(kit / "state" / "authority.lock", "a key authority"):
        sys.exit(keep_running("fedllm_client.node", arguments, stop, say) or stop.exit_code)


@app.command()
def log(kit: Path = _KIT, json_output: bool = options.JSON) -> None:
    """Show which rounds were opened for which sites.

    Checks that the log is whole; exit code 4 if it was altered.
    """
    from fedllm.federation.authority.round_log import read_log, round_log_path
    from fedllm.identity.kits import read_kit

    found = read_kit(kit, "authority")
    entries = read_log(round_log_path(found.folder), found.identity.public_bytes())
    if json_output:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        which = f"run {entry.run}, round {entry.round}, attempt {entry.attempt}"
        sites = ", ".join(map(found.roster.shown, entry.sites))
        line = f"{entry.number:6} {entry.time}  {entry.event:6}  {which}: {sites}"
        print(visible(line))
    print(f"{len(entries)} entries hold")
