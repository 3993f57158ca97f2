"""``fedllm export``: what a run trained, for tools that know nothing of fedllm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import typer

from fedllm.commands import options
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.exporting.export import Format


def export(
    run: Path = typer.Argument(metavar="RUN", help="The folder of a finished run."),
    format_: str = typer.Option(
        ...,
        "--format",
        help="peft: the adapter, for its base model. merged: a whole checkpoint. "
        "onnx: a graph with the head in it, for onnxruntime. gguf: a "
        "language model for llama.cpp.",
        click_type=click.Choice(["peft", "merged", "onnx", "gguf"]),
    ),
    out: Path = typer.Option(..., metavar="DIR", help="The new folder."),
    base: str | None = options.BASE,
    dtype: str | None = typer.Option(
        None,
        help="In which a whole checkpoint keeps its weights; as the base does when left out.",
        click_type=click.Choice(["float32", "bfloat16", "float16"]),
    ),
    json_output: bool = options.JSON,
) -> None:
    """Write what a run trained in a format that other tools load.

    What is written is loaded back without fedllm's own model and must answer as the run's model
    does; else nothing is left of the folder. A model card says what it is, and a script of a few
    lines uses it.
    """
    from fedllm.files import require_new
    from fedllm.runs.start import GIVEN, find_start

    # Before torch is imported, which takes many seconds.
    require_new(out)
    find_start(str(run), GIVEN)
    from fedllm.exporting.export import export as write

    written = write(run, out, cast("Format", format_), base, dtype)
    if json_output:
        told = {"folder": str(out), "largest_difference": written.largest}
        print(json.dumps(told | {"notes": list(written.notes)}, indent=2))
        return
    print(f"{visible(str(out))}: {written.what}")
    print(f"logits differ from the run's own model by {written.largest:.2g} at most")
    for note in written.notes:
        print(f"NOTE: {note}")
