"""``fedllm model``: checkpoints of base models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import typer

from fedllm.commands import options
from fedllm.commands.help import CommandGroup
from fedllm.errors import one_line
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.models.importing import Precision
    from fedllm.training.memory import MemoryEstimate

app = CommandGroup(
    help="Base models: show one, or make a checkpoint of a GGUF file.", no_args_is_help=True
)


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
    print(f"{out}: {visible(found.architecture)}, {found.values:,} parameters")
    if found.licence:
        print(f"licence, in the words of the file: {one_line(visible(found.licence))}")


@app.command()
def show(
    location: str = typer.Argument(
        metavar="DIR", help="A checkpoint's folder, or what else model.path may name."
    ),
    run: Path | None = typer.Option(
        None,
        metavar="RUN.toml",
        help="Estimate a site's memory for training this model with a run's settings.",
    ),
    json_output: bool = options.JSON,
) -> None:
    """Show what a base model is, and that a run could use it.

    Its weights are not loaded. Sites allow models by the fingerprint.
    """
    from fedllm.models.about import facts_of

    found = facts_of(location)
    needed = None if run is None else _estimate(location, run)
    if json_output:
        memory = {} if needed is None else {"memory_bytes": asdict(needed)}
        print(json.dumps(asdict(found) | memory, indent=2))
        return
    stored = ", ".join(f"{values:,} in {kind}" for kind, values in sorted(found.stored.items()))
    limit = "no limit" if found.positions is None else f"{found.positions:,} tokens"
    lines = {
        "kind": f"{found.model_type}, {'decoder' if found.causal else 'encoder'}",
        "parameters": f"{found.parameters:,} ({stored})",
        "layers": f"{found.layers} of width {found.hidden_size:,}",
        "adapted": ", ".join(found.query_value) or "name them in lora.target_modules",
        "a text": limit,
        "vocabulary": f"{found.vocabulary:,} rows, {found.tokens:,} tokens",
        "licence": found.licence or "the folder does not say",
        "fingerprint": found.fingerprint,
    }
    if needed is not None:
        lines["training"] = _training(needed)
        lines["kept"] = (
            f"{needed.kept_a_record / 2**20:.2f} MiB a record of the longest, at most "
            f"{_gib(needed.kept_at_most)} GiB in memory and the rest on disk"
            if needed.kept_a_record
            else "nothing: no layer below the trained ones is frozen"
        )
    print(visible(found.folder))
    for name, value in lines.items():
        print(f"  {name:<12} {visible(value)}")


def _training(needed: MemoryEstimate) -> str:
    model = f"{_gib(needed.weights)} weights, {_gib(needed.step)} a step"
    rest = f"{_gib(needed.vectors)} trained values"
    if needed.device == "cpu":
        return f"{_gib(needed.training)} GiB: {model}, {rest}; libraries and tokenizer come on top"
    return (
        f"{_gib(needed.on_device)} GiB of the GPU's memory ({needed.device}): {model}; its kernels "
        f"and PyTorch's context come on top. Of this machine's, {rest}, libraries and tokenizer, "
        "and the weights while they are loaded"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _estimate(location: str, run: Path) -> MemoryEstimate:
    from fedllm.config.files import load_run_config
    from fedllm.models.checkpoints import checkpoint_folder
    from fedllm.training.memory_of_run import memory_of

    return memory_of(load_run_config(run), checkpoint_folder(location))
