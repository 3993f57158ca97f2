"""``fedllm model``: checkpoints of base models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import typer

from fedllm.commands.help import CommandGroup

if TYPE_CHECKING:
    from fedllm.models.importing import Precision

app = CommandGroup(help="Base models: make a checkpoint of a GGUF file.", no_args_is_help=True)


@app.command("import")
def import_(
    file: Path = typer.Argument(metavar="FILE.gguf", help="A model as llama.cpp keeps it."),
    out: Path = typer.Option(..., metavar="DIR", help="The new checkpoint's folder."),
    precision: str | None = typer.Option(
        None,
        help="In which the weights are kept; the smallest that loses nothing when left out.",
        click_type=click.Choice(["float32", "bfloat16", "float16"]),
    ),
) -> None:
    """Make a checkpoint of a GGUF file.

    Runs then name the folder. Quantised weights become plain numbers, so that it is several
    times as large as the file.
    """
    from fedllm.models.importing import import_gguf

    found = import_gguf(file, out, cast("Precision | None", precision))
    print(f"{out}: {found.architecture}, {found.values:,} parameters")
    if found.licence:
        print(f"licence, in the words of the file: {found.licence}")
