"""``fedllm client``: what a site runs."""

from __future__ import annotations

import typer

from fedllm.commands.joining import add_joining_commands

app = typer.Typer(help="A site: join a federation, check the site.", no_args_is_help=True)
add_joining_commands(app, "site")
