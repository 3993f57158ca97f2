"""``fedllm compress``: a run's model made smaller or faster."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import typer

from fedllm.commands import compress_report, options
from fedllm.commands.help import CommandGroup
from fedllm.files import require_new
from fedllm.runs.start import GIVEN, find_start
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.compression.integers import Integers
    from fedllm.compression.pruning import Pattern
    from fedllm.compression.steps import Short, Texts
    from fedllm.compression.teaching import Teaching, Told
    from fedllm.exporting.written import Written

app = CommandGroup(
    help="Make a run's model smaller: prune, quantize, distill, pack.",
    no_args_is_help=True,
)

_RUN = typer.Argument(metavar="RUN", help="The folder of a finished run.")
_OUT = typer.Option(..., metavar="DIR", help="The new folder.")
_COLUMN = typer.Option("text", metavar="COLUMN", help="Where rows of --texts have the text.")
_DTYPE = typer.Option(
    None,
    "--dtype",
    help="In which weights are kept; as the base does when left out.",
    click_type=click.Choice(["float32", "bfloat16", "float16"]),
)
_RATE = typer.Option(1e-4, "--learning-rate", min=1e-7, max=1.0, help="Of teaching, at most.")
_ROWS = typer.Option(16, "--batch", min=1, metavar="N", help="Texts of a step of teaching.")
_SEED = typer.Option(0, min=0, metavar="N", help="Orders the texts.")
_TEXTS_HELP = "Public texts: JSON Lines, CSV or Parquet with --column, or plain text, one a line."


@app.command()
def prune(
    run: Path = _RUN,
    out: Path = _OUT,
    share: float | None = typer.Option(
        None, min=0.0, max=0.99, help="Set this share of each output's weights to zero."
    ),
    two_of_four: bool = typer.Option(
        False, "--two-of-four", help="Set two of each four neighbouring weights to zero."
    ),
    channels: float = typer.Option(
        0.0, min=0.0, max=0.99, help="Take out this share of feed-forward channels."
    ),
    heads: float = typer.Option(
        0.0, min=0.0, max=0.99, help="Take out this share of groups of attention heads."
    ),
    layers: float = typer.Option(
        0.0, min=0.0, max=0.99, help="Take out this share of blocks, which change states least."
    ),
    texts: str | None = typer.Option(None, metavar="FILE", help=_TEXTS_HELP),
    column: str = _COLUMN,
    steps: int = typer.Option(
        0, min=0, metavar="N", help="Let the whole model teach what is left so many steps."
    ),
    learning_rate: float = _RATE,
    rows: int = _ROWS,
    seed: int = _SEED,
    base: str | None = options.BASE,
    dtype: str | None = _DTYPE,
    json_output: bool = options.JSON,
) -> None:
    """Take out what matters least.

    Single weights become zero, which makes a packed model smaller and nothing faster; whole
    channels, heads and blocks make tensors smaller. What matters is seen by --texts; without them
    single weights go by their size. Zeros stay zero while what is left is taught.
    """
    _check(run, out)
    from fedllm.compression.steps import Pruning, prune_run
    from fedllm.errors import ConfigError

    if share is not None and two_of_four:
        raise ConfigError("--share and --two-of-four are two ways of one thing", "give one of them")
    pattern: Pattern | None = None if share is None else "share"
    if two_of_four:
        pattern = "2:4"
    asked = Pruning(pattern, share or 0.0, channels, heads, layers)
    teaching = _teaching(steps, learning_rate, rows, seed) if steps else None
    with _heard(json_output) as told:
        found = prune_run(run, out, asked, _texts(texts, column), teaching, told, base, dtype)
    _print(found, out, json_output)


@app.command()
def distill(
    run: Path = _RUN,
    out: Path = _OUT,
    texts: str = typer.Option(..., metavar="FILE", help=_TEXTS_HELP),
    column: str = _COLUMN,
    layers: float = typer.Option(0.5, min=0.01, max=0.99, help="Share of blocks of the student."),
    steps: int = typer.Option(500, min=1, metavar="N", help="Steps of teaching."),
    temperature: float = typer.Option(
        2.0, min=0.1, help="That both models' logits are divided by."
    ),
    hidden: float = typer.Option(1.0, min=0.0, help="Weight of the states' part of the loss."),
    learning_rate: float = _RATE,
    rows: int = _ROWS,
    seed: int = _SEED,
    base: str | None = options.BASE,
    dtype: str | None = _DTYPE,
    json_output: bool = options.JSON,
) -> None:
    """Teach a model of fewer blocks to answer as the run's does.

    On public texts. For private ones, start a federated run with the student as its base model:
    there they are noised and charged.
    """
    _check(run, out)
    from fedllm.compression.steps import Texts, distil_run

    teaching = _teaching(steps, learning_rate, rows, seed, temperature, hidden)
    with _heard(json_output) as told:
        found = distil_run(run, out, layers, Texts(texts, column), teaching, told, base, dtype)
    _print(found, out, json_output)


@app.command()
def quantize(
    run: Path = _RUN,
    out: Path = _OUT,
    to: str = typer.Option(
        "int8",
        help="int8: integers that are computed with as such. int8-weights, int4: integers that "
        "plain states meet. These are for processors; of the others weights are kept so.",
        click_type=click.Choice(["int8", "int8-weights", "int4", "bfloat16", "float16"]),
    ),
    texts: str | None = typer.Option(None, metavar="FILE", help=_TEXTS_HELP),
    column: str = _COLUMN,
    steps: int = typer.Option(
        0, min=0, metavar="N", help="Let the whole model teach the one of integers so many steps."
    ),
    learning_rate: float = typer.Option(
        1e-5, "--learning-rate", min=1e-7, max=1.0, help="Of teaching, at most."
    ),
    rows: int = _ROWS,
    seed: int = _SEED,
    base: str | None = options.BASE,
    json_output: bool = options.JSON,
) -> None:
    """Keep a run's model in fewer bits a weight.

    With --texts and --steps its weights are trained first so that, rounded, they answer as the
    whole model does.
    """
    _check(run, out)
    from fedllm.compression.steps import quantize_run

    held = cast("Integers | Short", to)
    teaching = _teaching(steps, learning_rate, rows, seed) if steps else None
    with _heard(json_output) as told:
        found = quantize_run(run, out, held, _texts(texts, column), teaching, told, base)
    _print(found, out, json_output)


@app.command()
def pack(
    folder: Path = typer.Argument(
        metavar="DIR", help="A whole model, as fedllm export or compress wrote it."
    ),
    out: Path = _OUT,
    times_smaller: float = typer.Option(
        8.0,
        "--times-smaller",
        min=1.0,
        help="Than in float32: up to it, room goes into finer values where they win most.",
    ),
    json_output: bool = options.JSON,
) -> None:
    """Store a whole model in as few bytes as it takes.

    Large matrices become one of 15, 31 or 63 values a weight, or zero, in Huffman's code. `fedllm
    compress unpack` makes an ordinary folder of it again, with the values to the bit.
    """
    require_new(out)
    from fedllm.compression.packing import pack as write

    sizes = write(folder, out, times_smaller)
    if json_output:
        from dataclasses import asdict

        told = {
            "total_bytes": sizes.total_bytes,
            "times_smaller": sizes.times_smaller,
            "folder_times_smaller": sizes.folder_times_smaller,
        }
        print(json.dumps({"folder": str(out), **asdict(sizes), **told}, indent=2))
        return
    rows = {
        "codes": sizes.codes,
        "values of codes": sizes.values,
        "scales of rows": sizes.scales,
        "other tensors": sizes.plain,
        "names": sizes.names,
        "other files": sizes.files,
        "together": sizes.total_bytes,
    }
    print(visible(str(out)))
    for name, size in rows.items():
        print(f"  {name:<16}{size:>15,} bytes")
    shares = ", ".join(f"{count} of {bits} bits" for bits, count in sizes.matrices.items())
    print(f"matrices with codes: {shares}")
    least = sizes.entropy_bits / 8
    print(f"weights are {sizes.times_smaller:.1f} times smaller than in float32")
    print(f"the whole folder is {sizes.folder_times_smaller:.1f} times smaller than with these")
    print(f"no code of single weights could take less than {least:,.0f} bytes for the codes")


@app.command()
def unpack(
    folder: Path = typer.Argument(metavar="DIR", help="A folder that fedllm compress pack wrote."),
    out: Path = _OUT,
) -> None:
    """Make an ordinary folder of a packed one."""
    require_new(out)
    from fedllm.compression.packing import unpack as write

    write(folder, out)
    print(visible(str(out)))


app.command()(compress_report.report)


def _check(run: Path, out: Path) -> None:
    """Refuse what can be refused before torch is imported, which takes many seconds."""
    require_new(out)
    find_start(str(run), GIVEN)


def _texts(location: str | None, column: str) -> Texts | None:
    from fedllm.compression.steps import Texts

    return None if location is None else Texts(location, column)


def _teaching(
    steps: int,
    learning_rate: float,
    rows: int,
    seed: int,
    temperature: float = 2.0,
    hidden: float = 1.0,
) -> Teaching:
    from fedllm.compression.distilling import Distillation
    from fedllm.compression.teaching import Teaching

    return Teaching(Distillation(steps, learning_rate, temperature, hidden), rows, seed)


@contextmanager
def _heard(quiet: bool) -> Iterator[Told]:
    """Show how far teaching is, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda step, steps, loss: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("teaching", total=None)

        def told(step: int, steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=steps, description=f"loss {loss:.4g}")

        yield cast("Callable[[int, int, float], None]", told)


def _print(written: Written, out: Path, json_output: bool) -> None:
    if json_output:
        told = {"folder": str(out), "largest_difference": written.largest}
        print(json.dumps(told | {"notes": list(written.notes)}, indent=2))
        return
    print(f"{visible(str(out))}: {written.what}")
    print(f"logits differ from the run's own model by {written.largest:.2g} at most")
    for note in written.notes:
        print(f"- {note}")
