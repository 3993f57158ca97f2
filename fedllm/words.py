"""Words of others on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from fedllm.visible import visible

if TYPE_CHECKING:
    from rich.table import Table


def safe(text: str, keep: str = "") -> str:
    """Return a name or a message for rich to print as it is: no markup, nothing hidden.

    ``keep`` are characters to leave alone, as of `visible`.
    """
    return escape(visible(text, keep))


def table(*headings: str, show_lines: bool = False) -> Table:
    """Return a table for rich whose cells are folded and never cut: a name is of use whole."""
    from rich.table import Table

    made = Table(show_lines=show_lines)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made
