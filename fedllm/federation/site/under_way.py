"""The round that a site is in, from the order until its sum can be opened without the site."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedllm.canonical import canonical_json
from fedllm.clock import utc_now
from fedllm.errors import FedllmError
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.files import write_bytes


class UnderWay:
    """Knows whether a site is in a round, and writes it down for the site's people.

    Nothing depends on the file: what cannot be written is not shown.

    Parameters
    ----------
    path : Path, optional
        Where it is written down; nowhere without one.
    clock : callable, optional
        Gives seconds.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._statement = ""
        self._until = 0.0
        self._shown: dict[str, Any] = {}
        self._forget()

    @property
    def busy(self) -> bool:
        """Whether the site is in a round."""
        return bool(self._statement) and self._clock() < self._until

    def begin(self, signed: str, statement: RoundStatement, name: str) -> None:
        """Note an order that was checked: its statement as signed, and the run's name."""
        self._statement, self._until = signed, float("inf")
        self._shown = {
            "run": statement.run,
            "name": name,
            "round": statement.round,
            "rounds": statement.rounds,
            "attempt": statement.attempt,
            "purpose": "training" if statement.purpose == "update" else "evaluation",
            "since": utc_now(),
        }
        self._show("computing")

    def answered(self, wait_s: float) -> None:
        """Note that the answer is made; the others may ask something more for ``wait_s``."""
        if not wait_s:
            self.end(self._statement)
            return
        self._until = self._clock() + wait_s
        until = datetime.now(UTC) + timedelta(seconds=min(wait_s, 1e9))
        self._shown["until"] = until.isoformat(timespec="seconds")
        self._show("waiting")

    def end(self, signed: str) -> None:
        """Note that a statement's round can go on without this site; others change nothing."""
        if signed == self._statement:
            self._statement = ""
            self._forget()

    def _show(self, phase: str) -> None:
        if self._path is not None:
            with suppress(OSError, FedllmError):
                content = canonical_json({**self._shown, "phase": phase})
                write_bytes(self._path, content, durable=False)

    def _forget(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
