"""Who watches a run that a command begins: the terminal, and a tracker where one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedllm.trackers.tensorboard import TensorBoardObserver

TENSORBOARD = typer.Option(
    None,
    metavar="DIR",
    help="Also write the figures for TensorBoard into this folder, one a run (extra tensorboard).",
)


def trackers(tensorboard: Path | None) -> list[TensorBoardObserver]:
    """Return what was asked for.

    Raises
    ------
    ConfigError
        If its package is not installed, or its folder cannot be written.
    """
    if tensorboard is None:
        return []
    from fedllm.files import make_output_folder
    from fedllm.trackers.tensorboard import TensorBoardObserver

    found = TensorBoardObserver(tensorboard)
    make_output_folder(tensorboard, "--tensorboard")
    return [found]
