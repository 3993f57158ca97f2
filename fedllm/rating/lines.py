"""Files of private texts that grow by whole lines, for their owner alone."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from fedllm.canonical import read_object
from fedllm.errors import ConfigError, FedllmError, of_system
from fedllm.files import append_to, sync_directory

Line = TypeVar("Line", bound=BaseModel)
_RESTORE = "restore the file from a backup, or take that line out"
_WRITTEN = f"name a file that fedllm rate wrote with --out; if it is one, {_RESTORE}"


class PrivateLines:
    """One JSON object a line; whoever else uses the machine reads none of it.

    Parameters
    ----------
    path : Path
        See `prepare`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the file where there is none; what is there is not changed.

        Raises
        ------
        ConfigError
            If it is a link, no regular file or another user's, or cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_opened(error) from None
        new = not self.path.exists()
        os.close(self._open(os.O_CREAT))
        if new:
            sync_directory(self.path.parent)

    def _open(self, flags: int) -> int:
        # What is written must not go where somebody else lets a link lead.
        flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise self._not_opened(error) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise self._not_plain()
        # Its owner can read it, whatever its mode.
        if found.st_uid != os.geteuid():
            os.close(descriptor)
            raise ConfigError(
                f"{self.path} belongs to another user, who could read what is written there",
                "choose another path for the file",
            )
        return descriptor

    def _not_opened(self, error: OSError) -> FedllmError:
        if self.path.is_symlink():
            return self._not_plain()
        return of_system(
            error,
            f"{self.path} cannot be opened ({error.strerror or type(error).__name__})",
            "choose another path, or change the folder's permissions",
        )

    def _not_plain(self) -> ConfigError:
        return ConfigError(
            f"{self.path} is a link, or no regular file", "choose another path for the file"
        )

    def read(self, kind: type[Line]) -> list[Line]:
        """Return all lines; a last one that a crash cut off is left out.

        Raises
        ------
        ConfigError
            If a line is damaged or not of this kind: names file, line and field, and quotes
            nothing.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise of_system(
                error,
                f"{self.path} cannot be read ({error.strerror or type(error).__name__})",
                "check the path",
            ) from None
        lines, found = content.split(b"\n"), list[Line]()
        for number, line in enumerate(lines, 1):
            if line and not (number == len(lines) and _is_cut_off(line)):
                found.append(self._line(line, number, kind))
        return found

    def _line(self, line: bytes, number: int, kind: type[Line]) -> Line:
        where = f"{self.path}, line {number}"
        # Whose first line is wrong is more likely another file, such as that of the prompts.
        remedy = _WRITTEN if number == 1 else _RESTORE
        try:
            return kind.model_validate(read_object(line))
        except ValidationError as error:
            # Its words may quote a text that stands there, and so may a name that is not known.
            first = [str(one["loc"][0]) if one["loc"] else "the line" for one in error.errors()]
            known = {*kind.model_fields, "the line"}
            wrong = sorted({name if name in known else "a field of another name" for name in first})
            raise ConfigError(
                f"{where}: {', '.join(wrong)} is missing, unknown or of another form", remedy
            ) from None
        except ValueError:
            raise ConfigError(f"{where} is no JSON object", remedy) from None

    def append(self, value: Mapping[str, Any] | BaseModel) -> None:
        """Append one line, on disk when this returns, and close the file to other users.

        What a crash left of a last line is taken off first; read the file before, so that it is one
        of this kind.

        Raises
        ------
        ConfigError
            If the file became a link, or another user's.
        StorageError
            If the disk is full; nothing of the line is left.
        """
        # Never by its name again, which may lead elsewhere by then.
        with os.fdopen(self._open(0), "rb+") as stream:
            try:
                os.fchmod(stream.fileno(), 0o600)
                end = _missing_end(stream)
            except OSError as error:
                raise self._not_opened(error) from None
            append_to(stream, self.path, end + to_line(value).encode() + b"\n")


def to_line(value: Mapping[str, Any] | BaseModel) -> str:
    """Return a value as one line of JSON."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def _missing_end(stream: BinaryIO) -> bytes:
    """Take off what a crash left of a last line; return what ends one that is whole but for it."""
    if not stream.seek(0, os.SEEK_END):
        return b""
    stream.seek(-1, os.SEEK_END)
    if stream.read(1) == b"\n":
        return b""
    stream.seek(0)
    content = stream.read()
    whole = content.rfind(b"\n") + 1
    if not _is_cut_off(content[whole:]):
        return b"\n"
    stream.truncate(whole)
    return b""


def _is_cut_off(line: bytes) -> bool:
    """Tell whether a last line is the beginning of an object and no whole one."""
    if not line.startswith(b"{"):
        return False
    try:
        read_object(line)
    except ValueError:
        return True
    return False
