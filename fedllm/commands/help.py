"""Groups of commands whose ``--help`` is plain and complete.

Three faults of typer 0.20 (Flower 1.41 allows no later one) are mended here. It escapes
``[required]`` and ``[default: ...]`` for rich even where plain text is printed, so that a
backslash shows. It names the command that was perhaps meant, as click itself does since 8.4, so
that both do. And it sets an argument's help text before click's own constructor runs,
which since click 8.5 resets it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import click
import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo

Function = TypeVar("Function", bound=Callable[..., Any])


class Command(TyperCommand):
    """A command that shows the help text of each of its arguments and options."""

    def __init__(
        self, name: str | None, *, callback: Callable[..., Any] | None = None, **settings: Any
    ) -> None:
        super().__init__(name, callback=callback, **settings)
        declared = inspect.signature(callback).parameters if callback else {}
        for parameter in self.params:
            found = declared[parameter.name].default if parameter.name in declared else None
            if isinstance(parameter, click.Argument) and isinstance(found, ArgumentInfo):
                parameter.help = found.help

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: `format_options` does, which every version of click calls."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments and the options, each with its help text."""
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = "Arguments" if isinstance(parameter, click.Argument) else "Options"
                rows[title].append((record[0], record[1].replace(r"\[", "[")))
        for title, shown in rows.items():
            if shown:
                with formatter.section(title):
                    formatter.write_dl(shown)


class Group(TyperGroup):
    """Names a command that was perhaps meant once."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; see `click.Group.resolve_command`."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if getattr(error, "possibilities", None):
                raise click.UsageError(error.message, ctx) from None
            raise


class CommandGroup(typer.Typer):
    """Commands that share a first word."""

    def __init__(self, cls: type[TyperGroup] = Group, **settings: Any) -> None:
        super().__init__(cls=cls, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Add a function as a command; see `typer.Typer.command`."""
        return super().command(name, **{"cls": Command, **settings})
