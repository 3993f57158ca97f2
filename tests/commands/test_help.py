"""``--help`` of every command, as somebody reads it who has never seen the code."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from fedllm.cli import app


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> Iterator:
    yield pytest.param(path, command, id=" ".join(path) or "fedllm")
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, (*path, name))


COMMANDS = list(every_command(typer.main.get_command(app)))


def shown(path: tuple[str, ...]) -> str:
    done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    return done.output


def unwrapped(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_every_argument_and_option_is_explained(path, command):
    output = unwrapped(shown(path))
    assert unwrapped(command.help) in output
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} has no help text"
        assert unwrapped(parameter.help) in output, parameter.name
        for name in parameter.opts if isinstance(parameter, click.Option) else ():
            assert name in output


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_help_is_plain_and_whole(path, command):
    output = shown(path)
    assert "\\" not in output
    assert "``" not in output
    assert output.count("Options:") == 1
    assert output.lower().count("arguments:") == any(
        isinstance(parameter, click.Argument) for parameter in command.params
    )
    for line in output.partition("Commands:")[2].splitlines():
        assert not line.endswith("..."), f"cut off: {line}"


def test_all_commands_were_found():
    assert {"client start", "provision make", "audit epsilon", "simulate", "fedllm"} <= {
        command.id for command in COMMANDS
    }


@pytest.mark.parametrize("given", [["predictt"], ["client", "strat"]])
def test_what_was_perhaps_meant_is_named_once(given):
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2
    assert done.output.count("Did you mean") == 1
