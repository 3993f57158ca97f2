"""What a site tells its own people: a private log of details, a journal and a list of messages.

None of them ever decides what leaves the site: what was paid for is not lost with a line, nor is a
refusal.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from fedllm.at_rest.log import SealedLog
from fedllm.errors import FedllmError
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.wire import Wire
from fedllm.federation.site.activity import Activity, sent_update
from fedllm.federation.site.data import Datasets
from fedllm.federation.site.journal import (
    TOLD_WHEN_DONE,
    Asked,
    Journal,
    Request,
    Spent,
    asked_by,
    reason_of,
)
from fedllm.federation.site.orders import Order
from fedllm.files import append_line
from fedllm.mechanisms import LocalStatistics


class SiteTelling:
    """Writes to all of them; no failure of one goes any further.

    Parameters
    ----------
    log : Path
        JSON Lines, as private as the records.
    journal : Journal, optional
        Of the service; holds no text of a record.
    spent : callable
        What the journal says of the budget after a message.
    at_once : bool
        As of `SiteFiles`.
    sealed : SealedLog, optional
        Written to instead of ``log``.
    activity : Activity, optional
        Each message by its kind and size; holds no text of a record.
    """

    def __init__(
        self,
        log: Path,
        journal: Journal | None,
        spent: Callable[[Asked], Spent | None],
        at_once: bool = True,
        sealed: SealedLog | None = None,
        activity: Activity | None = None,
    ) -> None:
        self._path = log
        self._sealed = sealed
        self._at_once = at_once
        self._journal = journal
        self._spent = spent
        self._activity = activity
        self._told: Datasets | None = None

    def done(self, request: Request, seconds: float, answer: Wire) -> None:
        """Say that a message was carried out, and what was answered."""
        if self._journal is None and self._activity is None:
            return
        try:
            asked = asked_by(request)
            if self._journal is not None:
                spent = self._spent(asked) if asked.message in TOLD_WHEN_DONE else None
                self._journal.done(asked, seconds, spent)
            # What an order gave has been written down in more words.
            if self._activity is not None and asked.message != "train":
                self._activity.answered(asked, answer)
        except Exception as failure:
            self._failed(failure)

    def refused(self, request: Request, error: BaseException, seconds: float) -> None:
        """Say that a message was refused, and why."""
        if self._journal is None and self._activity is None:
            return
        try:
            asked = asked_by(request)
            if self._journal is not None:
                self._journal.refused(asked, error, seconds, self._spent(asked))
            if self._activity is not None:
                self._activity.refused(asked, reason_of(error))
        except Exception as failure:
            self._failed(failure)

    def sends(self, order: Order, update: bytes) -> None:
        """Write down what is about to leave."""
        if self._activity is not None:
            try:
                self._activity.sent(sent_update(order, update))
            except Exception as failure:
                self._failed(failure)

    def details(self, error: BaseException) -> None:
        """Write down an error that leaves the site by its kind alone."""
        # A library's own words may quote a record; where it failed says nothing of one.
        text = str(error) if isinstance(error, FedllmError) else _place(error)
        self._append({"error": type(error).__name__, "text": text})

    def left_out(self, run: str, datasets: Datasets) -> None:
        """Say once which records are left out, and how much of the others is cut off."""
        if datasets is self._told:
            return
        self._told = datasets
        if datasets.cut_off:
            self._append({"run": run, "cut_off": datasets.cut_off})
            self._warn(f"run {run}: {datasets.cut_off}")
        if not datasets.left_out:
            return
        # Which they are stands in the log, which only the kit's owner reads.
        self._append({"run": run, "left_out": datasets.left_out})
        summary = datasets.left_out.splitlines()[0].rstrip(":")
        self._warn(f"run {run}: {summary} (the site's log of rounds has the details)")

    def trained(
        self,
        statement: RoundStatement,
        statistics: LocalStatistics,
        train_s: float,
        encrypt_s: float,
    ) -> None:
        """Write down what a round's training looked like."""
        line: dict[str, object] = {
            "run": statement.run,
            "round": statement.round,
            "attempt": statement.attempt,
            "seconds": {"train": train_s, "encrypt": encrypt_s},
            "loss": statistics.loss if np.isfinite(statistics.loss) else None,
            "records_seen": statistics.records_seen,
            "empty_batches": statistics.empty_batches,
            "norm_quantiles": statistics.norm_quantiles,
        }
        if statistics.broken_units:
            line["broken_units"] = dict(statistics.broken_units)
        if statistics.problem:
            line["problem"] = statistics.problem
        self._append(line)

    def _append(self, line: dict[str, object]) -> None:
        try:
            if self._sealed is not None:
                self._sealed.append(json.dumps(line), durable=self._at_once)
            else:
                append_line(self._path, json.dumps(line), durable=self._at_once)
        except FedllmError as error:
            self._warn(error.message)

    def _warn(self, text: str) -> None:
        if self._journal is not None:
            with suppress(Exception):
                self._journal.warn(text)

    def _failed(self, failure: Exception) -> None:
        self._append({"journal": type(failure).__name__})


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
