"""Options that several commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

import typer

JSON = typer.Option(False, "--json", help="Print the result as JSON, for scripts.")
SUMMARY = typer.Option(False, "--json", help="Print the summary as JSON, for scripts.")
SET = typer.Option(
    [],
    "--set",
    metavar="KEY=VALUE",
    help="Use another value than the file's, e.g. --set privacy.epsilon=3; may be repeated.",
)
HEADS = typer.Option(
    None,
    metavar="FILE",
    help="Ends of the sites' ledgers as the coordinator kept them (ledger_heads.jsonl in its "
    "folder of a run).",
)
BASE = typer.Option(
    None,
    "--base",
    metavar="DIR",
    help="Folder of the base model, or its repository in the hub's cache, if not where the run "
    "says.",
)
