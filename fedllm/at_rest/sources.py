"""Where a secret of this party's own stands: a file, a descriptor, the environment.

Never the command line: every user of a machine can read it.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from pathlib import Path

from fedllm.errors import ConfigError

MAX_SECRET_BYTES = 1024
SOURCES = "file:PATH, fd:NUMBER or env:NAME"


def read_secret(source: str, what: str = "passphrase", *, keep: bool = False) -> bytes:
    """Read a secret from ``file:PATH``, ``fd:NUMBER`` or ``env:NAME``.

    One line feed at its end is left out. ``what`` it is stands in errors; ``keep`` leaves it in the
    environment, for who reads it again.

    Raises
    ------
    ConfigError
        If there is none, it is too long, or others can read the file.
    """
    kind, _, place = source.partition(":")
    if kind == "file" and place:
        content = _from_file(Path(place), what)
    elif kind == "fd" and place.isdecimal():
        content = _from_descriptor(int(place), what)
    elif kind == "env" and place:
        # Not for the processes that this one may start.
        found = os.environ.get(place, "") if keep else os.environ.pop(place, "")
        content = found.encode()
    else:
        raise ConfigError(f"a {what}'s source is not of a known form", f"write {SOURCES}")
    secret = content.removesuffix(b"\n").removesuffix(b"\r")
    if not secret or len(secret) > MAX_SECRET_BYTES:
        raise ConfigError(
            f"there is no {what} in {kind}:{place}",
            f"put it there, in one line of at most {MAX_SECRET_BYTES} bytes",
        )
    return secret


def ask_at_terminal() -> bytes | None:
    """Ask whoever sits at the terminal for the passphrase of a kit's files; None if nobody does."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    try:
        return getpass.getpass("Passphrase of the kit's files: ").encode() or None
    except EOFError:
        return None


def nobody() -> bytes | None:
    """Ask nobody."""
    return None


def _from_file(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
                raise ConfigError(
                    f"other users of this machine can read {path}",
                    f"run: chmod 600 {path}   and choose another {what}",
                )
            return stream.read(MAX_SECRET_BYTES + 2)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or type(error).__name__})", "check the path"
        ) from None


def _from_descriptor(number: int, what: str) -> bytes:
    try:
        with os.fdopen(number, "rb") as stream:
            return stream.read(MAX_SECRET_BYTES + 2)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"descriptor {number} cannot be read ({type(error).__name__})",
            f"open it in the shell and name the {what} so, as in: fd:3 3< FILE",
        ) from None
