"""``fedllm authority``: what the key authority runs."""

from __future__ import annotations

import typer

from fedllm.commands.joining import add_joining_commands

app = typer.Typer(help="The key authority: join a federation.", no_args_is_help=True)
add_joining_commands(app, "authority")
