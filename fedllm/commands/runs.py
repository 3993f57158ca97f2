"""``fedllm runs``: which runs a folder holds, and in what some of them differ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import options
from fedllm.commands.help import CommandGroup
from fedllm.visible import visible
from fedllm.words import safe, table

if TYPE_CHECKING:
    from fedllm.runs.shelf import Compared, Listed

app = CommandGroup(help="List runs, and compare them.", no_args_is_help=True)

# The first of them that there is says most of a run in a word.
_MEASURES = ("accuracy", "f1", "reward", "loss")


@app.command(name="list")
def list_runs(
    folders: list[Path] = typer.Argument(
        None, metavar="[FOLDER]...", help="Runs, or folders of runs; 'runs' if left out."
    ),
    json_output: bool = options.JSON,
) -> None:
    """List runs: their state, figures, privacy and date.

    Folders of runs are looked through to three levels. Federated runs, alignments and pretraining.
    """
    from fedllm.runs.shelf import listed

    found = listed(folders or [Path("runs")])
    if json_output:
        print(json.dumps([asdict(one) for one in found], indent=2, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    rows = Table("Run", box=None, pad_edge=False)
    rows.columns[0].overflow = "fold"
    for heading in ("Task", "State", "Quality", "Epsilon", "Begun"):
        rows.add_column(heading, no_wrap=heading != "Task", overflow="fold")
    above = _above([one.folder for one in found])
    for one in found:
        rows.add_row(*map(safe, _row(one, above)))
    if above is not None:
        print(f"in {visible(str(above))}:")
    Console().print(rows)
    for one in found:
        if one.problem:
            print(f"{visible(str(one.folder))}: {visible(one.problem)}")


def _above(folders: Sequence[Path]) -> Path | None:
    """Return the folder that all lie in, where that shortens what is told."""
    if len(folders) < 2:
        return None
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _row(one: Listed, above: Path | None) -> tuple[str, ...]:
    progress = f"{one.done} of {one.rounds}"
    state = {"finished": one.state, "begun": progress if one.rounds else one.state}
    names = [name for name in (*_MEASURES, *one.metrics) if name in one.metrics]
    unknown = "unknown" if one.private else "none"
    return (
        str(one.folder.absolute().relative_to(above) if above else one.folder),
        one.task if one.kind == "run" else one.kind,
        state.get(one.state, one.state),
        f"{names[0]} {one.metrics[names[0]]:.4g}" if names else "",
        f"{one.epsilon:.4g}" if one.epsilon is not None else unknown * (one.kind == "run"),
        one.started[:10],
    )


@app.command()
def compare(
    folders: list[Path] = typer.Argument(metavar="RUN...", help="Finished runs, two or more."),
    json_output: bool = options.JSON,
) -> None:
    """Show in what finished runs differ.

    Settings, quality, privacy and cost. Also says what makes the figures hard to compare.
    """
    from fedllm.runs.shelf import compare as compared

    found = compared(folders)
    if json_output:
        print(json.dumps(asdict(found), indent=2))
    else:
        _print(found)


def _print(found: Compared) -> None:
    from rich.console import Console

    console = Console()
    short = _short(found.runs)
    for number, (name, whole) in enumerate(zip(short, found.runs, strict=True), 1):
        console.print(f"{number}  {safe(name)}  [dim]{safe(whole)}[/dim]", highlight=False)
    for title, rows in (
        ("Settings that differ", found.settings),
        ("Quality on the public test file", found.metrics),
        ("Privacy", found.privacy),
        ("Cost", found.cost),
        ("Model", found.model),
    ):
        if rows:
            console.print(_table(title, rows, len(short)))
    for note in found.notes:
        print(f"note: {visible(note)}")


def _short(runs: Sequence[str]) -> list[str]:
    names = [Path(run).name for run in runs]
    return names if len(set(names)) == len(names) else list(runs)


def _table(title: str, rows: Mapping[str, Sequence[Any]], runs: int) -> Any:
    from fedllm.runs.shelf import in_words, title_of

    made = table(title, *map(str, range(1, runs + 1)))
    for key, values in rows.items():
        made.add_row(safe(title_of(key)), *(safe(in_words(key, value)) for value in values))
    return made
