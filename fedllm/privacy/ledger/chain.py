"""A ledger's file while it is in use: what it says so far, and how an entry is appended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from fedllm.privacy.ledger.audit import check_anchors
from fedllm.privacy.ledger.entries import (
    Entry,
    Head,
    LedgerRefusal,
    Signer,
    TamperedError,
    make_entry,
    read_chain,
)
from fedllm.privacy.ledger.state import LedgerState
from fedllm.privacy.ledger.store import Store, Sync, Transaction


class Chain:
    """One site's signed entries in one file, to which several processes may append.

    Use `Chain.open`. One thread at a time.

    Attributes
    ----------
    path : Path
        The file.
    state : LedgerState
        What the entries said when they were looked at last.
    """

    def __init__(self, store: Store, signer: Signer) -> None:
        self.path = store.path
        self.state = LedgerState()
        self._store = store
        self._signer = signer

    @classmethod
    def open(cls, path: Path, site: str, signer: Signer, anchor: Head | None, sync: Sync) -> Self:
        """Open the file, or make it; errors and parameters are those of `Ledger.open`."""
        store = Store(path, sync)
        if not path.exists():
            if anchor is not None:
                raise TamperedError(f"the ledger {path} is gone: entry {anchor.sequence} is known")
            body = {"public_key": signer.public_bytes().hex(), "nonce": os.urandom(32).hex()}
            store.create(make_entry(signer, site, None, "open", body))
        chain = cls(store, signer)
        with store.read() as view:
            chain._catch_up(view)
            check_anchors(view.entries(), () if anchor is None else (anchor,))
        if chain.state.site != site:
            raise LedgerRefusal(
                f"the ledger {path} belongs to another site, not to '{site}'",
                "give each site its own ledger file",
            )
        if chain.state.public_key != signer.public_bytes():
            raise LedgerRefusal(
                f"the ledger {path} was begun with another site key",
                "use the site's original key; a new key cannot take over a ledger",
            )
        return chain

    def look(self) -> LedgerState:
        """Take in what other processes appended, and return what all entries say."""
        with self._store.read() as view:
            self._catch_up(view)
        return self.state

    @contextmanager
    def writing(self) -> Iterator[Callable[[str, dict[str, Any]], int]]:
        """Hold the write transaction; entries count only once it is on disk.

        Yields a function that appends an entry of a kind with a body, and returns its number.
        """
        written: list[Entry] = []
        with self._store.write() as view:
            self._catch_up(view)
            head, site = self.state.head, self.state.site

            def append(kind: str, body: dict[str, Any]) -> int:
                nonlocal head
                entry = make_entry(self._signer, site, head, kind, body)
                view.append(entry)
                written.append(entry)
                head = entry.head
                return entry.sequence

            yield append
        for entry in written:
            self.state.apply(entry)

    def flush(self) -> None:
        """See that all entries are on disk where that is due when a round is committed."""
        self._store.flush()

    def _catch_up(self, view: Transaction) -> None:
        """Take in what was appended, and see that the past is as it was."""
        head = self.state.head
        stored = view.entries(head.sequence) if head else view.entries()
        if head is not None:
            last = next(stored, None)
            if last is None or (last.sequence, last.hash.hex()) != (head.sequence, head.hash):
                raise TamperedError(
                    f"the ledger {self.path} was exchanged or cut while it was in use: "
                    f"entry {head.sequence} is not what it was"
                )
        for entry in read_chain(stored, head, self.state.public_key or None):
            if head is not None and entry.content["site"] != self.state.site:
                raise TamperedError(f"entry {entry.sequence} belongs to another site")
            self.state.apply(entry)
        if self.state.head is None:
            raise TamperedError(f"the ledger {self.path} is empty")
