"""Write files so that a crash or a full disk never damages what was there before."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fedllm.errors import ConfigError, StorageError, of_system
from fedllm.visible import is_hidden

# Of files that are synced one by one: other programs' writes are none of theirs.
_FEW = 16
_OF_THE_DISK = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.EFBIG,
        errno.EMFILE,
        errno.ENFILE,
    )
)


def sync_directory(path: Path) -> None:
    """Force to disk which files a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(paths: Sequence[Path]) -> None:
    """Force to disk what files of one folder hold, and which files it has.

    Each file waits for the disk by itself, so that of many the whole file system is synced at once
    where the system has a call for it (Linux: syncfs).

    Raises
    ------
    StorageError
        If the disk is full or broken.
    """
    if not paths:
        return
    folder = paths[0].parent
    try:
        if len(paths) > _FEW and sys.platform == "linux":
            _sync_file_system(folder)
            return
        for path in paths:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        sync_directory(folder)
    except OSError as error:
        raise _failure(folder, error) from error


def _sync_file_system(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def _failure(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"could not write {path}: {error.strerror or error}",
        "free disk space, change the folder's permissions, or choose another path; the earlier "
        "file is untouched",
    )


@contextmanager
def given_path() -> Iterator[None]:
    """Write to a path that was just given on a command line; whose mistake a failure then is.

    Raises
    ------
    ConfigError
        If the path is wrong, or its user may not write there.
    StorageError
        If the disk is full or broken.
    """
    try:
        yield
    except StorageError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise of_system(error.__cause__, error.message, error.remedy) from error.__cause__


def explained(error: BaseException) -> BaseException:
    """Return the `StorageError` that an error of the file system is, or ``error`` itself."""
    if not isinstance(error, OSError) or error.errno not in _OF_THE_DISK:
        return error
    where = f"{error.filename}: " if error.filename is not None else ""
    return StorageError(
        f"{where}{error.strerror or type(error).__name__}",
        "free disk space, or let the user that runs this service own the file and its folder",
    )


@contextmanager
def atomic_file(path: Path, mode: int = 0o644, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` only when the block ends well.

    Parameters
    ----------
    path : Path
        The file to replace; its folder is created.
    mode : int
        Permission bits of the new file.
    durable : bool
        Whether it is on disk when the block has ended, or when the system writes it.

    Raises
    ------
    StorageError
        If the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _failure(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _failure(path, error) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: Path, content: bytes, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` by ``content``; see `atomic_file`."""
    with atomic_file(path, mode, durable) as stream:
        stream.write(content)


def overwrite(path: Path, content: bytes) -> None:
    """Put ``content``, some hundred bytes, in the place of as many that a file holds.

    In one write of the system, which no signal cuts in two, and which needs no room on the disk;
    for what need not outlive a loss of power. A file system may write to disk at once what a rename
    exchanges, and that takes long. What has another length is exchanged all the same: a file that
    is being made is empty for a moment, and one that grows may find no room.

    Raises
    ------
    StorageError
        If the disk is full or the folder cannot be written.
    """
    try:
        with suppress(FileNotFoundError), path.open("r+b", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size == len(content):
                stream.write(content)
                return
    except OSError as error:
        raise _failure(path, error) from error
    write_bytes(path, content, durable=False)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON; NaN is refused. See `atomic_file`.

    What would steer a terminal stands in it as JSON's own escapes.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    if not text.replace("\n", "").isprintable():
        text = "".join(json.dumps(c)[1:-1] if is_hidden(c) and c != "\n" else c for c in text)
    write_bytes(path, text.encode() + b"\n")


def share_as_new(folder: Path, pattern: str) -> None:
    """Give files of a folder the permissions that a new one has, by the user's umask.

    Some libraries write by way of temporary files, which are their owner's alone.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place) / "new"
        made.touch()
        mode = stat.S_IMODE(made.stat().st_mode)
    for path in folder.glob(pattern):
        path.chmod(mode)


def require_new(folder: Path) -> None:
    """Refuse to write into a folder that is there.

    Raises
    ------
    ConfigError
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already", "name another folder, or remove it")


@contextmanager
def atomic_directory(path: Path, mode: int = 0o755) -> Iterator[Path]:
    """Fill a temporary folder that replaces ``path`` only when the block ends well.

    ``mode`` are the new folder's permission bits. The exchange is two renames; a crash
    between them leaves the old folder beside the new one under a name that ends in
    ``.old``, and `recover_directory` puts it back.

    Raises
    ------
    StorageError
        If the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    retired = path.with_name(path.name + ".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_directory(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _failure(path, error) from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        temporary.chmod(mode)
        if path.exists():
            path.replace(retired)
        temporary.replace(path)
        sync_directory(path.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_directory(path)
        raise _failure(path, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_directory(path)
        raise


def publish_directory(filled: Path, path: Path) -> None:
    """Give a filled folder its name, once all that it holds is on disk.

    Parameters
    ----------
    filled : Path
        On the same file system as ``path``, which must not be there, or be empty.

    Raises
    ------
    StorageError
        If it cannot be; both folders are as they were.
    """
    try:
        for inner in (*filled.rglob("*"), filled):
            if inner.is_dir():
                sync_directory(inner)
            else:
                with inner.open("rb") as stream:
                    os.fsync(stream.fileno())
        filled.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        raise _failure(path, error) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file of any size, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_output_folder(path: Path, option: str) -> None:
    """Make a folder that a command was asked to write into, and see that it can be written.

    Parameters
    ----------
    path : Path
        The folder; those above it are made too.
    option : str
        What named it, such as ``--out``.

    Raises
    ------
    ConfigError
        If it is a file, lies below one, or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".writable.", dir=path)
        os.close(descriptor)
        Path(name).unlink()
    except OSError as error:
        reason = "it is a file" if path.is_file() else (error.strerror or str(error))
        raise ConfigError(
            f"could not write into the folder {path}: {reason}",
            f"choose another folder with {option}, or change its permissions",
        ) from None


def recover_directory(path: Path) -> None:
    """Undo an exchange of folders that a crash cut off between its two renames."""
    retired = path.with_name(path.name + ".old")
    if retired.exists():
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.replace(path)


def missing_end(path: Path) -> bytes:
    """Return what ends a last line that a crash cut off, so that the next is not glued to it."""
    try:
        with path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return b"" if stream.read(1) == b"\n" else b"\n"
    except OSError:
        # Without a file, or in an empty one, there is no last byte.
        return b""


def append_line(path: Path, line: str, durable: bool = True) -> None:
    """Append one line and, if it is to be ``durable``, force it to disk.

    Raises
    ------
    StorageError
        If the disk is full; a half-written line is cut off again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab") as stream:
            append_to(stream, path, missing_end(path) + line.encode() + b"\n", durable)
            # A name that a crash takes away takes the line with it.
            if durable and new:
                sync_directory(path.parent)
    except OSError as error:
        raise _failure(path, error) from error


def append_to(stream: BinaryIO, path: Path, content: bytes, durable: bool = True) -> None:
    """Append to an open file; the path is for messages alone, and may name another one by now.

    Raises
    ------
    StorageError
        If the disk is full; what was written is cut off again.
    """
    try:
        start = stream.seek(0, os.SEEK_END)
        try:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(stream.fileno(), start)
            raise
    except OSError as error:
        raise _failure(path, error) from error
