"""Questions on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

Answer = TypeVar("Answer")


def asked(question: Callable[[], Answer]) -> Answer:
    """Return the answer to a prompt of typer's; Ctrl-C in it is Ctrl-C.

    Raises
    ------
    KeyboardInterrupt
        Where typer itself would not tell it from the end of the input.
    typer.Abort
        If there is no input.
    """
    try:
        return question()
    except typer.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
