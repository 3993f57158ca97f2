"""One ledger in one SQLite file: durable appends, one writer at a time, nothing else.

Why a rollback journal (``journal_mode=DELETE``) with ``synchronous=EXTRA`` and not WAL: the
ledger is one file that can be copied and read from read-only media at any time between two
appends, it needs no shared memory (network file systems), and EXTRA also syncs the folder
after the journal is gone, so that a commit survives a loss of power
(https://www.sqlite.org/pragma.html#pragma_synchronous). Its price, a few syncs an append,
is nothing against a round of training.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from fedllm.canonical import canonical_json
from fedllm.privacy.ledger.entries import Entry, LedgerError, NoLedgerError, RawEntry, TamperedError

_APPLICATION_ID = 1179405361  # "FLL1"
SQLITE = b"SQLite format 3\0"
# What stands in the first page of every ledger besides.
TRACES = (b"FLL1", b"the ledger is append-only")
_WAIT_S = 60.0
# When entries are on disk: each when it is written; all that a round made when it is committed; or
# when whoever opened the ledgers of many sites syncs them together.
Sync = Literal["entry", "commit", "together"]
# The triggers stop mistakes; the proof is the chain, which does not trust them.
_SCHEMA = """
PRAGMA application_id = 1179405361;
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    content BLOB NOT NULL,
    hash BLOB NOT NULL,
    signature BLOB NOT NULL
) STRICT;
CREATE TABLE tags (
    sequence INTEGER PRIMARY KEY REFERENCES entries (sequence),
    records BLOB NOT NULL,
    persons BLOB NOT NULL
) STRICT;
CREATE TRIGGER entries_in_order BEFORE INSERT ON entries
WHEN NEW.sequence IS NOT (SELECT coalesce(max(sequence), 0) + 1 FROM entries)
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER tags_once BEFORE INSERT ON tags
WHEN EXISTS (SELECT 1 FROM tags WHERE sequence = NEW.sequence)
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER tags_no_update BEFORE UPDATE ON tags
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER tags_no_delete BEFORE DELETE ON tags
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


class Transaction:
    """One open view of the ledger file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def entries(self, start: int = 1) -> Iterator[RawEntry]:
        """Return the stored entries from number ``start`` on, in order."""
        rows = self._connection.execute(
            "SELECT sequence, content, hash, signature FROM entries "
            "WHERE sequence >= ? ORDER BY sequence",
            (start,),
        ).fetchall()
        return (RawEntry(*_typed(row)) for row in rows)

    def tags(self) -> list[tuple[int, bytes, bytes]]:
        """Return (sequence of the data set's entry, record tags, person tags).

        Only ledgers that were charged by data set have any.
        """
        rows = self._connection.execute(
            "SELECT sequence, records, persons FROM tags ORDER BY sequence"
        ).fetchall()
        return [_typed(row) for row in rows]

    def append(self, entry: Entry) -> None:
        """Write one entry; durable once the transaction ends."""
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?)",
            (entry.sequence, canonical_json(entry.content), entry.hash, entry.signature),
        )


def _typed(row: Any) -> Any:
    """Return a row as it is: a number, then bytes; another program's table may hold anything."""
    sequence, *blobs = row
    if type(sequence) is not int or not all(isinstance(blob, bytes) for blob in blobs):
        raise TamperedError("the ledger holds an entry that is not of a ledger's types")
    return row


class Store:
    """The file of a ledger.

    Every operation opens its own connection, so that threads and forks never share one.

    Parameters
    ----------
    path : Path
        The file.
    sync : {"entry", "commit", "together"}
        When what is written is on disk; see `Ledger.open`.
    """

    def __init__(self, path: Path, sync: Sync = "entry") -> None:
        self.path = path
        self._sync = sync
        self._at_once = sync == "entry"

    def create(self, first: Entry) -> bool:
        """Make the file with its first entry; False if it exists already.

        It is made under another name and linked into place whole, so that two processes
        cannot both make it and an empty file is never taken for a new ledger.

        Raises
        ------
        LedgerError
            If the folder cannot be written.
        """
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            os.close(descriptor)
            try:
                connection = _connect(f"file:{_quoted(Path(name))}?mode=rw", self._at_once)
                try:
                    connection.executescript(_SCHEMA)
                    connection.execute("BEGIN IMMEDIATE")
                    Transaction(connection).append(first)
                    connection.execute("COMMIT")
                finally:
                    connection.close()
                os.link(name, self.path)
            except FileExistsError:
                return False
            finally:
                for leftover in (name, f"{name}-journal"):
                    with suppress(OSError):
                        os.unlink(leftover)
            if self._at_once:
                _sync(self.path.parent)
        return True

    def flush(self) -> None:
        """See that what a round wrote is on disk where that is due now; errors as in `write`."""
        if self._sync == "commit":
            with _explained(self.path):
                _sync(self.path)
                _sync(self.path.parent)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Hold the only write transaction; ends durably on disk, or not at all.

        Raises
        ------
        LedgerError
            If the file cannot be written or another process holds it for a minute.
        TamperedError
            If the file is not a ledger or is damaged.
        """
        with _explained(self.path), _opened(self.path, "rw", self._at_once) as connection:
            # A transaction that was not committed ends with its connection.
            connection.execute("BEGIN IMMEDIATE")
            yield Transaction(connection)
            connection.execute("COMMIT")

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Hold one consistent view of the file; errors as in `write`."""
        # A journal left by a crash must be rolled back first, which needs write access.
        mode = "rw" if os.access(self.path, os.W_OK) else "ro"
        with _explained(self.path), _opened(self.path, mode, self._at_once) as connection:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            yield Transaction(connection)


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path.absolute()))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(uri: str, at_once: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(f"PRAGMA synchronous = {'EXTRA' if at_once else 'OFF'}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _opened(path: Path, mode: str, at_once: bool) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise NoLedgerError(
            f"there is no ledger at {path}",
            "check the path; a site that was never charged has none yet",
        )
    connection = _connect(f"file:{_quoted(path)}?mode={mode}", at_once)
    try:
        if connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
            raise TamperedError(f"{path} is not a fedllm ledger")
        yield connection
    finally:
        connection.close()


_DAMAGE = ("not a database", "malformed", "no such table", "no such column")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into ours; every one of them refuses."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise TamperedError(f"the ledger {path} is damaged: {error.reason}") from error
    except (sqlite3.Error, OverflowError) as error:
        if any(words in str(error) for words in _DAMAGE):
            raise TamperedError(f"the ledger {path} is damaged: {error}") from error
        raise LedgerError(
            f"the ledger {path} cannot be used: {error}",
            "free disk space, give write access to the file and its folder, or end the "
            "process that holds it; nothing was charged and nothing may be trained",
        ) from error
    except OSError as error:
        raise LedgerError(
            f"the ledger {path} cannot be used: {error.strerror or error}",
            "free disk space or give write access to the file and its folder",
        ) from error
