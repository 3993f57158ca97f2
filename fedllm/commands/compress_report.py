"""``fedllm compress report``: every variant of a model side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import options
from fedllm.errors import ConfigError
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.compression.report.membership import Attack

_PAIRS = 4


def report(
    original: Path = typer.Argument(
        metavar="RUN|FOLDER",
        help="The folder of a finished run, or its whole model (fedllm export --format merged).",
    ),
    variants: list[Path] = typer.Argument(
        metavar="VARIANT...", help="Folders that fedllm compress or export wrote, packed or not."
    ),
    records: str = typer.Option(
        ...,
        metavar="FILE",
        help="Records with the run's columns that no model was trained on: JSON Lines, CSV or "
        "Parquet.",
    ),
    out: Path = typer.Option(
        ..., metavar="DIR", help="Folder of the report; what is measured there is not again."
    ),
    shadows: int | None = typer.Option(
        None,
        min=1,
        metavar="N",
        help="Attack each model by membership inference, with so many pairs of shadow models, on "
        f"the run's own records. With --members it is {_PAIRS} when left out.",
    ),
    members: str | None = typer.Option(
        None, metavar="FILE", help="Training records to tell from --others, instead of the run's."
    ),
    others: str | None = typer.Option(
        None, metavar="FILE", help="Records that were not trained on, of the same kind."
    ),
    base: str | None = options.BASE,
    json_output: bool = options.JSON,
) -> None:
    """Show a run's model and smaller ones side by side.

    All get the same records. Size, weights, operations, time on this processor, memory, quality
    with intervals, how often the answer is the same, and what membership inference finds. Writes
    report.html, report.json and table.md. An interrupted report goes on with the same command.
    """
    from fedllm.compression.report.folders import read_original, read_variants
    from fedllm.compression.report.measure import measure
    from fedllm.compression.report.page import write_report
    from fedllm.compression.report.table import markdown
    from fedllm.files import given_path

    attack = _attack(shadows, members, others)
    found = read_original(original, base)
    compared = read_variants(found, variants)
    with given_path():
        told = measure(found, compared, records, out, attack, _heard)
        page = write_report(told, out)
    if json_output:
        print(json.dumps(told.model_dump(mode="json"), indent=2))
        return
    print(markdown(told))
    print(visible(str(page)))


def _attack(shadows: int | None, members: str | None, others: str | None) -> Attack | None:
    from fedllm.compression.report.membership import Attack

    if (members is None) != (others is None):
        raise ConfigError(
            "members can be told from others only",
            "give both --members FILE and --others FILE, or --shadows alone for the run's records",
        )
    if shadows is None and members is None:
        return None
    return Attack(shadows or _PAIRS, members, others)


def _heard(what: str, done: int, of: int) -> None:
    """Say on a terminal what is done now, and elsewhere which step is reached."""
    if sys.stderr.isatty():
        end = "\n" if done == of else ""
        print(f"\r\033[K{visible(what)}: {done} of {of}", end=end, file=sys.stderr, flush=True)
    elif done == of:
        print(visible(what), file=sys.stderr, flush=True)
