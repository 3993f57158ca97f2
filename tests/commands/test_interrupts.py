"""Ctrl-C: 130 from every command, with what is worth saying; SIGTERM ends a service with 0."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import click
import pytest
import typer

from fedllm import cli
from fedllm.commands import passphrase


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        yield path
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


def found(command: click.Command, path: tuple[str, ...]) -> click.Command:
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def pressed(*_args, **_keywords):
    raise KeyboardInterrupt


def exit_code(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedllm", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("path", leaves(typer.main.get_command(cli.app)), ids=" ".join)
def test_ctrl_c_in_any_command_exits_130(monkeypatch, path):
    whole = typer.main.get_command(cli.app)
    leaf = found(whole, path)
    monkeypatch.setattr(leaf, "callback", pressed)
    monkeypatch.setattr(leaf, "params", [])
    monkeypatch.setattr(cli, "app", whole)
    assert exit_code(monkeypatch, *path) == 130


@pytest.fixture
def run_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'name = "small"\ntask = "classification"\n[data]\ntrain = "x.jsonl"\n[model]\npath = "."\n'
    )
    return path


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupted_simulation_says_how_to_go_on(
    monkeypatch, run_toml, capsys, tmp_path, begun
):
    """A run that left nothing cannot be resumed, and its user is not told to try."""
    from fedllm.commands import simulate
    from fedllm_server import simulation

    out = tmp_path / "o"

    def carried(*_args, **_keywords):
        out.mkdir()
        if begun:
            (out / "run.toml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "with_base_model", lambda config: config)
    monkeypatch.setattr(simulation, "simulate", carried)
    assert exit_code(monkeypatch, "simulate", str(run_toml), "--out", str(out)) == 130
    said = capsys.readouterr().err
    assert ("--resume" in said) == begun
    assert ("nothing was charged" in said) == (not begun)


def test_an_interrupted_watcher_says_that_the_run_goes_on(monkeypatch, run_toml, capsys, tmp_path):
    from support.kits import make_federation

    from fedllm_server import following

    make_federation(tmp_path / "fed")
    monkeypatch.setattr(following, "follow", pressed)
    kit = str(tmp_path / "fed" / "kits" / "coordinator")
    assert exit_code(monkeypatch, "run", str(run_toml), "--kit", kit, "--follow") == 130
    assert "the run goes on" in capsys.readouterr().err


@pytest.mark.parametrize(("pressed_by", "code"), [(KeyboardInterrupt, 130), (EOFError, 1)])
def test_ctrl_c_at_a_prompt_is_told_from_the_end_of_the_input(monkeypatch, pressed_by, code):
    def read(*_args, **_keywords):
        raise pressed_by

    monkeypatch.setattr(click.termui, "hidden_prompt_func", read)
    whole = typer.main.get_command(cli.app)
    leaf = found(whole, ("demo",))
    monkeypatch.setattr(leaf, "callback", lambda **_: passphrase._typed("Passphrase", twice=False))
    monkeypatch.setattr(cli, "app", whole)
    assert exit_code(monkeypatch, "demo") == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_service_tells_how_it_was_stopped(number, code):
    from fedllm.processes import stop_on_signals

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = stop_on_signals()
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(timeout=60)
        assert stop.exit_code == code
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
