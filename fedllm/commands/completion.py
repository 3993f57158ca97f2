"""``fedllm completion``: commands, options and files completed by the tab key of a shell."""

from __future__ import annotations

import os
from pathlib import Path

import click
import typer

from fedllm.commands.help import CommandGroup
from fedllm.errors import ConfigError
from fedllm.files import given_path, write_bytes

app = CommandGroup(help="Completion by the tab key of a shell.", no_args_is_help=True)

_SHELLS = ("bash", "zsh", "fish")
_PROGRAM, _VARIABLE = "fedllm", "_FEDLLM_COMPLETE"
SHELL = typer.Option(
    None,
    "--shell",
    help="The shell; that of this account when left out.",
    click_type=click.Choice(_SHELLS),
)
# By which bash finds scripts in its folders.
_BASH_COMPLETION = (
    Path("/usr/share/bash-completion/bash_completion"),
    Path("/etc/profile.d/bash_completion.sh"),
)


@app.command()
def install(shell: str | None = SHELL) -> None:
    """Set up completion for this account.

    Writes one file where the shell looks for such scripts, changes no other, and says what else
    is needed.
    """
    name = _shell(shell)
    path = _place(name)
    script = script_of(name)
    with given_path():
        write_bytes(path, script.encode())
    print(f"written: {path}")
    print(_rest(name, path))


@app.command()
def show(shell: str | None = SHELL) -> None:
    """Print the script, to put it anywhere."""
    print(script_of(_shell(shell)))


def script_of(shell: str) -> str:
    """Return what a shell has to read."""
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    # By name: typer puts others into click's register as soon as it has answered once.
    made = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}[shell]
    script = made(click.Command(_PROGRAM), {}, _PROGRAM, _VARIABLE).source()
    # Typer, which answers, takes the two words of what it is asked in the other order.
    return script.replace(f"{_VARIABLE}={shell}_complete", f"{_VARIABLE}=complete_{shell}")


def _shell(named: str | None) -> str:
    if named is not None:
        return named
    name = Path(os.environ.get("SHELL", "")).name
    if name not in _SHELLS:
        raise ConfigError(
            f"this account's shell is {name or 'not known'}",
            f"name one with --shell: {', '.join(_SHELLS)}",
        )
    return name


def _place(shell: str) -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return {
        "bash": data / "bash-completion" / "completions" / _PROGRAM,
        "zsh": Path.home() / ".zfunc" / f"_{_PROGRAM}",
        "fish": settings / "fish" / "completions" / f"{_PROGRAM}.fish",
    }[shell]


def _rest(shell: str, path: Path) -> str:
    """Say what is left to do."""
    if shell == "zsh":
        return (
            "add to ~/.zshrc, if it is not there, and open a new terminal:\n"
            f"  fpath+=({path.parent})\n  autoload -Uz compinit && compinit"
        )
    if shell == "bash" and not any(one.exists() for one in _BASH_COMPLETION):
        return (
            "the package bash-completion is not installed: install it, or add to ~/.bashrc, and "
            f"open a new terminal:\n  source {path}"
        )
    return "open a new terminal"
