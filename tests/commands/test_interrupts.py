"""Ctrl-C: 130 from every command, with what is worth saying; SIGTERM ends a service with 0."""

from __future__ import annotations

import os
import shlex
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


def test_the_command_that_goes_on_is_whole_and_tells_no_password(
    monkeypatch, run_toml, capsys, tmp_path
):
    from fedllm.commands import simulate
    from fedllm_server import simulation

    out, policy = tmp_path / "our runs", tmp_path / "site.toml"
    policy.write_text("[budget]\nepsilon = 3\n")

    def carried(*_args, **_keywords):
        out.mkdir()
        (out / "run.toml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "with_base_model", lambda config: config)
    monkeypatch.setattr(simulation, "simulate", carried)
    given = ["simulate", str(run_toml), "--set", "rounds.count=3", "--out", str(out)]
    given += ["--policy", str(policy), "--ledgers", str(tmp_path / "l"), "--engine", "ray"]
    secret = "data.train=postgresql://me:hunter2@host/db"
    more = ["--set", secret, "--set", "data.query=SELECT 1"]
    assert exit_code(monkeypatch, *given, *more) == 130
    said = capsys.readouterr().err
    assert "hunter2" not in said
    (line,) = (line for line in said.splitlines() if "go on with: " in line)
    words = shlex.split(line.partition("go on with: ")[2])
    assert words[0] == "fedllm"
    assert words[-1] == "--resume"
    same = [word if word != secret else "data.train=..." for word in (*given, *more)]
    assert sorted(words[1:-1]) == sorted(same)


@pytest.mark.parametrize("quick", [True, False])
def test_an_interrupted_demo_says_what_is_kept_and_how_to_go_on(
    monkeypatch, capsys, tmp_path, quick
):
    from fedllm.demo import folder, story

    def told(out, *_args, **_keywords):
        folder.claim(out, quick, resume=False)
        raise KeyboardInterrupt

    out, more = tmp_path / "our demo", ["--quick"] if quick else []
    monkeypatch.setattr(story, "tell", told)
    assert exit_code(monkeypatch, "demo", "--out", str(out), *more) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert f"what is finished is kept in {out}" in said
    assert f"fedllm demo --out '{out}'{' --quick' if quick else ''} --resume" in said


def test_an_interrupted_pretraining_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    from fedllm.pretraining import run as pretraining

    (tmp_path / "a.txt").write_text("words of a text\n" * 100)
    path, out = tmp_path / "pretrain.toml", str(tmp_path / "our base")
    path.write_text(f'name = "x"\n[data]\ntrain = ["{tmp_path}/a.txt"]\nheld_out = 0.0\n')
    monkeypatch.setattr(pretraining, "run_pretraining", pressed)
    given = ["pretrain", str(path), "--set", "training.tokens=1000", "--out", out]
    assert exit_code(monkeypatch, *given) == 130
    said = capsys.readouterr().err
    assert shlex.split(said.partition("go on with: ")[2]) == ["fedllm", *given, "--resume"]


def test_an_interrupt_while_the_base_model_is_made_is_told_as_such(
    monkeypatch, run_toml, capsys, tmp_path
):
    from fedllm.commands import simulate

    monkeypatch.setattr(simulate, "with_base_model", pressed)
    assert exit_code(monkeypatch, "simulate", str(run_toml), "--out", str(tmp_path / "o")) == 130
    assert "nothing was charged" in capsys.readouterr().err


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
