"""Where a passphrase comes from: a terminal without echo, a file, a descriptor, the environment.

Never the command line: every user of a machine can read it.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import typer

from fedllm.commands.prompts import asked
from fedllm.errors import ConfigError

_MAX_BYTES = 1024
_SOURCES = "file:PATH, fd:NUMBER or env:NAME"

FROM = typer.Option(
    None,
    "--passphrase-from",
    metavar="SOURCE",
    help=f"Where the root key's passphrase stands: {_SOURCES}; asked for when left out.",
)
NEW_FROM = typer.Option(
    None,
    "--new-passphrase-from",
    metavar="SOURCE",
    help=f"Where the new passphrase stands: {_SOURCES}; asked for when left out.",
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
            f"name it with --passphrase-from: {_SOURCES}",
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
    """Read a passphrase from ``file:PATH``, ``fd:NUMBER`` or ``env:NAME``.

    One line feed at its end is left out.

    Raises
    ------
    ConfigError
        If there is none, it is too long, or others can read the file.
    """
    kind, _, place = source.partition(":")
    if kind == "file" and place:
        content = _from_file(Path(place))
    elif kind == "fd" and place.isdecimal():
        content = _from_descriptor(int(place))
    elif kind == "env" and place:
        # Not for the processes that this one may start.
        content = os.environ.pop(place, "").encode()
    else:
        raise ConfigError("a passphrase's source is not of a known form", f"write {_SOURCES}")
    passphrase = content.removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase or len(passphrase) > _MAX_BYTES:
        raise ConfigError(
            f"there is no passphrase in {kind}:{place}",
            f"put it there, in one line of at most {_MAX_BYTES} bytes",
        )
    return passphrase


def _from_file(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
                raise ConfigError(
                    f"other users of this machine can read {path}",
                    f"run: chmod 600 {path}   and choose another passphrase",
                )
            return stream.read(_MAX_BYTES + 2)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or type(error).__name__})", "check the path"
        ) from None


def _from_descriptor(number: int) -> bytes:
    try:
        with os.fdopen(number, "rb") as stream:
            return stream.read(_MAX_BYTES + 2)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"descriptor {number} cannot be read ({type(error).__name__})",
            "open it in the shell, as in: ... --passphrase-from fd:3 3< FILE",
        ) from None
