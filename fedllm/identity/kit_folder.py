"""A kit as a folder: whose it is (``kit.json``), who can read it, who is changing it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedllm.canonical import from_hex, read_object
from fedllm.errors import ConfigError
from fedllm.files import write_json
from fedllm.identity.roster import ROLES
from fedllm.locks import in_turn

_FORMAT = "fedllm.kit.v1"
_PRIVATE = ("keys/signing.pem", "keys/secret.bin", "node.key", "server.key")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep two processes from installing rosters at once: the older one could win."""
    path = folder / ".lock"
    try:
        path.touch(mode=0o600)
    except OSError as error:
        if error.errno == errno.EROFS:
            # Nobody can install anything there.
            yield
            return
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or type(error).__name__})",
            "check the path, and run as the owner of the kit",
        ) from None
    with in_turn(path):
        yield


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write ``kit.json``: whose kit it is, the pinned root and the newest version seen."""
    write_json(folder / "kit.json", {"format": _FORMAT} | description)
    (folder / "kit.json").chmod(0o600)


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``kit.json``; see `read_kit` for the errors."""
    path = folder / "kit.json"
    try:
        value = read_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder} is no kit: it has no kit.json", "check the path, or enroll to make a kit"
        ) from None
    except PermissionError:
        raise ConfigError(
            f"{path} cannot be read by this user", f"run as the owner of {folder}"
        ) from None
    except (OSError, ValueError):
        raise ConfigError(f"{path} is damaged", "restore the kit from its backup") from None
    keys = {"format", "role", "name", "federation", "root", "roster_version"}
    if (
        set(value) != keys
        or value["format"] != _FORMAT
        or value["role"] not in ROLES
        or not isinstance(value["name"], str)
        or not isinstance(value["federation"], str | None)
        or type(value["roster_version"]) is not int
        or not _is_key(value["root"])
    ):
        raise ConfigError(f"{path} is damaged", "restore the kit from its backup")
    return value


def _is_key(value: Any) -> bool:
    try:
        return value is None or len(from_hex(value)) == 32
    except ValueError:
        return False


def check_permissions(folder: Path) -> None:
    """Check that nobody but the owner can read the kit.

    Raises
    ------
    ConfigError
        Names the first file with wider permissions, and the command that mends all.
    """
    for path in (folder, folder / "keys", *(folder / name for name in _PRIVATE)):
        try:
            mode = path.stat().st_mode & 0o777
        except FileNotFoundError:
            continue
        if mode & 0o077:
            raise ConfigError(
                f"{path} can be read by other users of this machine (mode {mode:04o})",
                f"run: chmod -R go-rwx {folder}   and ask yourself who may have read it",
            )
