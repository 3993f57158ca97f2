"""The commands that a text names, and the command line that reads them without running them."""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from dataclasses import dataclass

import click
import typer

from fedllm.cli import app


@dataclass(frozen=True)
class Named:
    """A command of a text; one that is only sketched may lack what it needs to run."""

    arguments: tuple[str, ...]
    sketched: bool

    def parse(self) -> None:
        """Let the command line read it; a bare name is looked up, nothing runs.

        Raises
        ------
        click.UsageError
            If there is no such command or option, or something is missing.
        """
        command, context, rest = typer.main.get_command(app), None, list(self.arguments)
        while isinstance(command, click.Group) and rest:
            context = command.make_context(command.name, rest, parent=context)
            name, found, rest = command.resolve_command(
                context, context.protected_args + context.args
            )
            assert found is not None, name
            command = found
        missing = click.MissingParameter if self.sketched else ()
        with contextlib.suppress(missing):
            if rest:
                command.make_context(command.name, rest, parent=context)


def commands(text: str) -> list[Named]:
    """Every fedllm command of a Markdown text: in blocks of code, in sentences and tables."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^ {4}(.*)", text, re.MULTILINE)
    lines += re.findall(r"`(fedllm [^`]+)`", text)
    return [named for line in lines for named in _of_line(line)]


def _of_line(line: str) -> list[Named]:
    found = re.match(r"(?:torchrun .*--no-python )?fedllm (.+)", line)
    if not found:
        return []
    # What stands behind two spaces or a number sign explains the command.
    words = re.split(r" {2,}|\s#", found[1])[0]
    sketched = any(mark in words for mark in ("|", "[", "..."))
    for mark in ("[", "]", "..."):
        words = words.replace(mark, "")
    choices = [word.split("|") for word in shlex.split(words)]
    return [Named(choice, sketched) for choice in itertools.product(*choices)]
