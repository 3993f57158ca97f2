"""The key authority's log: which rounds it opened, signed, chained and on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedllm.canonical import from_hex, read_object, reading, sha256_hex
from fedllm.errors import PeerError
from fedllm.federation.authority.authority import OpenedRounds
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.files import append_line, write_bytes
from fedllm.identity.keys import Identity, verify_signature

_FORMAT = "fedllm.round-log.v1"


def round_log_path(kit: Path) -> Path:
    """Return where the log is in the key authority's kit."""
    return kit / "state" / "rounds.jsonl"


@dataclass(frozen=True)
class LogEntry:
    """One line of the log.

    Attributes
    ----------
    number : int
        From 1, without gaps.
    time : str
        ISO 8601, UTC.
    event : str
        "opened" before a round's key is made, "summed" before its sum is given out.
    run, round, attempt
        Which round; ``run`` is `RoundStatement.series`, which tells evaluation from training.
    sites : tuple of str
        The cohort, or the sites whose sum was opened.
    previous : str
        SHA-256 of the line before, in hexadecimal; of nothing for the first.
    """

    number: int
    time: str
    event: str
    run: str
    round: int
    attempt: int
    sites: tuple[str, ...]
    previous: str

    def signed_bytes(self) -> bytes:
        """Return what the authority signs."""
        return json.dumps([_FORMAT, asdict(self)], sort_keys=True).encode()


class RoundLog(OpenedRounds):
    """Opened rounds that survive a restart; each is on disk before its key is made.

    Parameters
    ----------
    path : Path
        JSON Lines.
    identity : Identity
        The authority's keys.

    Raises
    ------
    PeerError
        If the log was altered.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        super().__init__()
        self._path = path
        self._identity = identity
        entries, self._head = _read(path, identity.public_bytes())
        # A line that a crash cut off: the key that it announced was never made.
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content or not path.exists():
            write_bytes(path, whole)
        self._number = len(entries)
        self._seen = {(e.run, e.round, e.attempt) for e in entries if e.event == "opened"}

    def add(self, statement: RoundStatement) -> None:
        """Note that a key for this attempt of a round is about to be made; see the base."""
        super().add(statement)
        self._append("opened", statement, statement.cohort)

    def summed(self, statement: RoundStatement, survivors: Sequence[str]) -> None:
        """Note that the sum of these sites was opened."""
        self._append("summed", statement, survivors)

    def _append(self, event: str, statement: RoundStatement, sites: Sequence[str]) -> None:
        entry = LogEntry(
            number=self._number + 1,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            event=event,
            run=statement.series,
            round=statement.round,
            attempt=statement.attempt,
            sites=tuple(sites),
            previous=self._head,
        )
        signature = self._identity.sign(entry.signed_bytes()).hex()
        line = json.dumps({**asdict(entry), "signature": signature})
        append_line(self._path, line)
        self._number, self._head = entry.number, sha256_hex(line)


def read_log(path: Path, public_key: bytes) -> list[LogEntry]:
    """Read a log and check numbers, chain and signatures.

    Raises
    ------
    PeerError
        Names the first line that does not hold.
    """
    return _read(path, public_key)[0]


def _read(path: Path, public_key: bytes) -> tuple[list[LogEntry], str]:
    entries: list[LogEntry] = []
    head = ""
    if not path.exists():
        return entries, head
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        with reading(_altered(path, number, "it is damaged")):
            value = read_object(line)
            signature = from_hex(value.pop("signature"))
            entry = _entry(value)
        if entry.number != number or entry.previous != head:
            raise _altered(path, number, "it does not follow from the line before")
        try:
            verify_signature(public_key, signature, entry.signed_bytes(), "the key authority")
        except PeerError:
            raise _altered(path, number, "its signature does not fit") from None
        entries.append(entry)
        head = sha256_hex(line)
    return entries, head


def _entry(value: dict[str, Any]) -> LogEntry:
    entry = LogEntry(**{**value, "sites": tuple(value["sites"])})
    numbers = (entry.number, entry.round, entry.attempt)
    texts = (entry.time, entry.event, entry.run, entry.previous, *entry.sites)
    if any(type(one) is not int for one in numbers) or any(type(one) is not str for one in texts):
        raise TypeError("not an entry's types")
    return entry


def _altered(path: Path, number: int, why: str) -> PeerError:
    return PeerError(
        f"{path}, line {number}: {why}",
        "restore the log from its backup; without it a round could be opened twice",
    )
