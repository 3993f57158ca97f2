"""What the commands have in common that ask a model: their options, and how it is loaded."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.errors import ConfigError
from fedllm.visible import visible

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fedllm.data.asked import Asked
    from fedllm.models.generation import Writing
    from fedllm.serving.released import Released
    from fedllm.serving.usable import OwnLayerOf, Usable

DEVICE = typer.Option(
    None, metavar="DEVICE", help="Where it computes: cpu, cuda, cuda:N or auto; as the run says."
)
KIT = typer.Option(
    None,
    metavar="KIT",
    help="The site's kit: puts the site's own layer (fedllm client personalise) on top.",
)
MAX_LENGTH = typer.Option(
    None,
    min=2,
    metavar="TOKENS",
    help="Most tokens of a text, or of prompt and answer together; as the run says.",
)
OUT = typer.Option(
    None, metavar="FILE", help="Write JSON Lines into this file; it is replaced as a whole."
)
LINES = typer.Option(False, "--json", help="Print JSON Lines, also on a terminal.")
NEW_TOKENS = typer.Option(
    256, "--max-new-tokens", min=1, metavar="N", help="Write at most so many tokens."
)
TOP_P = typer.Option(
    1.0, metavar="P", help="Draw from the likeliest tokens that have this probability together."
)
SEED = typer.Option(
    None, min=0, metavar="N", help="The same seed gives a prompt the same answer, on this machine."
)
STOP = typer.Option([], metavar="TEXT", help="End the answer before this text; may be repeated.")


def tell(text: str) -> None:
    """Tell people something that is no part of the result."""
    typer.echo(visible(f"fedllm: {text}"), err=True)


def working(words: str) -> AbstractContextManager[object]:
    """Say on a terminal what is done now."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(words)


def opened(
    location: Path,
    base: str | None,
    device: str | None,
    max_length: int | None,
    kit: Path | None,
) -> Usable:
    """Load what is to be asked, and tell what there is to know of it."""
    check_model(location)
    from fedllm.serving.usable import open_usable

    own_layer = None if kit is None else own_layer_of(kit)
    with working("loading the model"):
        found = open_usable(location, base, device, max_length, own_layer)
    for note in found.notes:
        tell(note)
    return found


def own_layer_of(kit: Path) -> OwnLayerOf:
    """Return what reads a site's own layer for a released model."""
    from fedllm.identity.kits import read_kit
    from fedllm.processes import keep_memory_private

    keep_memory_private()
    own = read_kit(kit, "site")
    # These import torch.
    from fedllm.personal.own_layer import OwnLayer
    from fedllm.personal.sealed import open_own_layer, own_layer_path

    def of(released: Released) -> OwnLayer:
        sha256 = str(released.about["adapter"])
        return open_own_layer(
            own_layer_path(own.folder, sha256), own.identity, released.model, sha256
        )

    return of


def check_asked(texts: list[str], file: str | None, option: str) -> None:
    """Refuse, before a model is loaded, what cannot be asked.

    Raises
    ------
    ConfigError
        If there is nothing, or both texts and a file, a text is empty, or there is no such file.
    """
    from fedllm.data.asked import STANDARD_INPUT
    from fedllm.data.readers import data_files
    from fedllm.data.text_files import opened as opened_file

    if bool(texts) == (file is not None):
        raise ConfigError(
            f"there is nothing to ask, or both {option} and a FILE were given",
            f"give {option} TEXT (may be repeated), or a FILE: JSON Lines, CSV, Parquet or plain "
            "text, one a line; - reads standard input",
        )
    if not all(text.strip() for text in texts):
        raise ConfigError(f"an empty text was given with {option}", "give it words")
    if file is not None and file != STANDARD_INPUT:
        for path in data_files(file):
            with opened_file(path):
                pass


def check_model(location: Path) -> None:
    """Refuse a folder without a model before torch is imported, which takes many seconds."""
    from fedllm.runs.start import require_model

    require_model(location)


def check_out(out: Path | None) -> None:
    """Refuse, before a model is loaded, a file that cannot be written.

    Raises
    ------
    ConfigError
        If it is a folder.
    """
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a folder", "name a file; it is replaced as a whole")


def asked_texts(texts: list[str], file: str | None, column: str) -> list[Asked]:
    """Return the texts of the command line, or of a file.

    Raises
    ------
    DataError
        See `read_asked`.
    """
    from fedllm.data.asked import Asked, read_asked

    if file is not None:
        return read_asked(file, column, sys.stdin.buffer)
    return [Asked(number, text) for number, text in enumerate(texts, 1)]


def tell_cut(cut: list[int], what: str, most: int) -> None:
    """Tell how many texts were too long.

    Parameters
    ----------
    cut : list of int
        Tokens of each text that were not read.
    """
    if any(cut):
        tell(
            f"{sum(map(bool, cut))} of {len(cut)} {what} are longer than {most} tokens: "
            f"{sum(cut)} tokens were not read"
        )


def writing_of(
    new_tokens: int, temperature: float, top_p: float, seed: int | None, stop: list[str]
) -> Writing:
    """Return how an answer is written; with chance and without a seed, one is drawn.

    Raises
    ------
    ConfigError
        If a number is out of its range.
    """
    import secrets

    from fedllm.models.drawing import Sampling
    from fedllm.models.generation import Writing

    if temperature and seed is None:
        seed = secrets.randbelow(2**31)
    return Writing(new_tokens, tuple(stop), Sampling(temperature, top_p, seed))
