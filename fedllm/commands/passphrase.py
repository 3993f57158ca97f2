"""Where a passphrase comes from: a terminal without echo, a file, a descriptor, the environment.

Never the command line: every user of a machine can read it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from fedllm.at_rest.sources import SOURCES, read_secret
from fedllm.commands.prompts import asked
from fedllm.errors import ConfigError

FROM = typer.Option(
    None,
    "--passphrase-from",
    metavar="SOURCE",
    help=f"Where the root key's passphrase stands: {SOURCES}; asked for when left out.",
)
NEW_FROM = typer.Option(
    None,
    "--new-passphrase-from",
    metavar="SOURCE",
    help=f"Where the new passphrase stands: {SOURCES}; asked for when left out.",
)


def passphrase_for(folder: Path, source: str | None) -> bytes | None:
    """Return the passphrase of an operator's folder, or None if its keys have none.

    Raises
    ------
    ConfigError
        If one is needed, and neither named nor to be asked for.
    """
    from fedllm.identity.operator_keys import is_protected

    if not is_protected(folder):
        return None
    if source is not None:
        return read_passphrase(source)
    if not _somebody_is_there():
        raise ConfigError(
            f"the keys in {folder} are protected by a passphrase, and nobody can be asked",
            f"name it with --passphrase-from: {SOURCES}",
        )
    return _typed("Passphrase of the root key", twice=False)


def new_passphrase(source: str | None) -> bytes | None:
    """Return the passphrase for new keys; None if nothing was named, typed, or nobody is there."""
    if source is not None:
        return read_passphrase(source)
    if not _somebody_is_there():
        return None
    return _typed("New passphrase for the root key (nothing for none)", twice=True)


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _typed(words: str, twice: bool) -> bytes | None:
    # click shows no letter of it, and asks again until both are the same.
    text = asked(
        lambda: typer.prompt(
            words,
            default="",
            show_default=False,
            hide_input=True,
            confirmation_prompt=twice,
            err=True,
        )
    )
    return text.encode() or None


def read_passphrase(source: str) -> bytes:
    """Read a passphrase; see `fedllm.at_rest.sources.read_secret`."""
    return read_secret(source)
