"""Tell the demo's story: with colours and tables on a terminal, in plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol


class Teller(Protocol):
    """Somebody who tells what happens."""

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        ...

    def say(self, text: str) -> None:
        """Tell a line."""
        ...

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show rows under a head; the first column is text, the others are figures."""
        ...


class PlainTeller:
    """Writes lines to standard output."""

    def chapter(self, title: str) -> None:
        """Write the title after an empty line."""
        print(f"\n== {title}", flush=True)

    def say(self, text: str) -> None:
        """Write the line."""
        print(text, flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write columns padded with spaces."""
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            first = row[0].ljust(widths[0])
            rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            print("  ".join([first, *rest]), flush=True)


class RichTeller:
    """Writes to a terminal with rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()

    def chapter(self, title: str) -> None:
        """Draw a rule with the title."""
        from rich.rule import Rule

        self._console.print()
        self._console.print(Rule(title, align="left"))

    def say(self, text: str) -> None:
        """Write the line; nothing in it is taken as markup."""
        self._console.print(text, markup=False, highlight=False)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Draw a table."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD)
        for index, name in enumerate(head):
            table.add_column(Text(name), justify="right" if index else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)


def default_teller() -> Teller:
    """Return the teller that fits where standard output goes."""
    return RichTeller() if sys.stdout.isatty() else PlainTeller()
