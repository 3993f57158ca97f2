"""Files that others write while they are read: what is new, and whether there is anything new."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Stamp = tuple[int, int, int]
Value = TypeVar("Value")


def stamp(path: Path) -> Stamp | None:
    """Return what changes with a file's content: inode, size and time; None without a file."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_ino, told.st_size, told.st_mtime_ns


def require_plain(path: Path) -> None:
    """Refuse what is no file of its folder's own, before it is opened.

    Runs write nothing else. Opening a pipe waits for whoever writes into it, and a link may lead to
    what is not for those who see the page.

    Raises
    ------
    OSError
        If it is a link, a pipe, a folder or a device.
    """
    kind = path.lstat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "it is a link or a device, and no plain file", str(path))


class Lines:
    """The whole lines of a file that grows; each is read once.

    Parameters
    ----------
    path : Path
        Of the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: Stamp | None = None
        self._read = 0
        self._begun = b""

    def new(self) -> tuple[bool, list[bytes]]:
        """Return the lines since the last call, and whether the file is another one since.

        What has no end yet is still being written, and comes with a later call. Of a file that was
        exchanged or cut, all lines are new.

        Raises
        ------
        OSError
            If it cannot be read.
        """
        now = stamp(self.path)
        if now == self._stamp:
            return False, []
        another = self._stamp is not None and (
            now is None
            or now[0] != self._stamp[0]
            or now[1] < self._read
            or now[1] == self._stamp[1]
        )
        if another:
            self._read, self._begun = 0, b""
        if now is None:
            self._stamp = None
            return another, []
        require_plain(self.path)
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            content = stream.read()
        self._stamp = now
        self._read += len(content)
        *whole, self._begun = (self._begun + content).split(b"\n")
        return another, whole


class Kept(Generic[Value]):
    """What was made of a file, until the file changes.

    Parameters
    ----------
    path : Path
        Of the file.
    make : callable
        Makes the value; called anew for each state of the file, not while it is not there.
    """

    def __init__(self, path: Path, make: Callable[[Path], Value]) -> None:
        self._path = path
        self._make = make
        self._stamp: Stamp | None = None
        self.value: Value | None = None

    def look(self) -> bool:
        """Bring the value up to date; tell whether the file is another one than before."""
        now = stamp(self._path)
        if now == self._stamp:
            return False
        self._stamp = now
        self.value = None if now is None else self._make(self._path)
        return True
