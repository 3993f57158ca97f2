from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from fedllm import files
from fedllm.errors import FedllmError, StorageError
from fedllm.rating.lines import PrivateLines


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"good": 1})
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FedllmError, match="No space left") as caught:
        files.write_json(path, {"half": 2})
    assert "free disk space" in str(caught.value)
    assert path.read_text() == '{\n  "good": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_inside_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.atomic_file(path) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_secret_files_have_their_mode_before_they_have_their_name(tmp_path: Path) -> None:
    path = tmp_path / "key"
    files.write_bytes(path, b"secret", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_directory_exchange(tmp_path: Path) -> None:
    path = tmp_path / "d"
    for text in ("one", "two"):
        with files.atomic_directory(path) as temporary:
            (temporary / "f").write_text(text)
    assert (path / "f").read_text() == "two"
    with pytest.raises(ZeroDivisionError), files.atomic_directory(path) as temporary:
        (temporary / "f").write_text("three")
        raise ZeroDivisionError
    assert (path / "f").read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with files.atomic_directory(path) as temporary:
        (temporary / "f").write_text("one")
    path.replace(tmp_path / "d.old")
    files.recover_directory(path)
    assert (path / "f").read_text() == "one"


def test_a_half_written_line_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    files.append_line(path, "one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(FedllmError):
            files.append_line(path, "two")
    files.append_line(path, "three")
    assert path.read_text() == "one\nthree\n"


def test_a_line_that_a_crash_cut_off_spoils_no_later_one(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for before, after in ((b"", b""), (b"one\n", b"one\n"), (b"one\ntw", b"one\ntw\n")):
        path.write_bytes(before)
        files.append_line(path, "three")
        assert path.read_bytes() == after + b"three\n"


def test_the_name_of_a_new_file_is_on_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, own = list[bool](), os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        own(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.append_line(tmp_path / "m.jsonl", "one")
    assert synced == [False, True]
    files.append_line(tmp_path / "m.jsonl", "two")
    assert synced == [False, True, False]
    PrivateLines(tmp_path / "p.jsonl").prepare()
    assert synced[3:] == [True]
    PrivateLines(tmp_path / "p.jsonl").prepare()
    assert len(synced) == 4


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x", {"loss": float("nan")})
    assert not (tmp_path / "x").exists()


WRONG_PATH = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


@pytest.mark.parametrize("code", [*WRONG_PATH, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("form", ["file", "folder", "line"])
def test_a_disk_that_takes_nothing_is_no_mistake_in_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, code: int
) -> None:
    """A service that ends with a wrong configuration is not started again."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path))

    def write() -> None:
        if form == "file":
            files.write_json(tmp_path / "x", {})
        elif form == "line":
            files.append_line(tmp_path / "x", "a")
        else:
            with files.atomic_directory(tmp_path / "x"):
                pass

    for name in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(files.tempfile, name, fail)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(StorageError, match=f"could not write .*x: {os.strerror(code)}") as caught:
        write()
    assert caught.value.exit_code == 1
    # A path that a person just gave is that person's to change.
    with pytest.raises(FedllmError, match="could not write") as given, files.given_path():
        write()
    assert given.value.exit_code == (2 if code in WRONG_PATH else 1)
    assert given.value.remedy == caught.value.remedy
