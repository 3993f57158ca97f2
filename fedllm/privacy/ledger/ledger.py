"""The site's ledger: what its records have spent, decided before anything is trained.

Append-only, hash-chained, signed, durable. `Ledger.reserve` writes a charge to disk or
raises; what is reserved is spent for ever, committed or not, so that a crash at any point
can only ever cost budget, never privacy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from fedllm.errors import BudgetError, RepeatError
from fedllm.privacy.accounting.accountants import EpsilonEstimate, epsilon
from fedllm.privacy.accounting.events import Event
from fedllm.privacy.ledger.audit import Verification, verify_ledger
from fedllm.privacy.ledger.budget import VIEWS, BudgetGuard, Ceiling, Charge, View
from fedllm.privacy.ledger.chain import Chain
from fedllm.privacy.ledger.charges import (
    Carried,
    Reservation,
    SettledOn,
    carry_body,
    may_share,
    reservation_body,
)
from fedllm.privacy.ledger.entries import (
    Head,
    LedgerRefusal,
    Signer,
    TamperedError,
)
from fedllm.privacy.ledger.fingerprints import Unit
from fedllm.privacy.ledger.state import LedgerState
from fedllm.privacy.ledger.store import Sync


class Ledger:
    """One site's ledger in one file; safe for several threads and processes at once.

    Use `Ledger.open`. Errors of all methods: `TamperedError` (exit code 4) if the file was
    changed by anything but a ledger; `LedgerError` (exit code 1) if it cannot be read or
    written, in which case nothing was charged.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._guard = BudgetGuard()
        self._lock = threading.RLock()
        self._looked = False

    @classmethod
    def open(
        cls,
        path: Path,
        site: str,
        signer: Signer,
        anchor: Head | None = None,
        sync: Sync = "entry",
    ) -> Self:
        """Open a site's ledger, or make it; every entry and signature is checked.

        Parameters
        ----------
        path : Path
            The SQLite file.
        site : str
            The site's name.
        signer : Signer
            The site's Ed25519 key, the same for the life of the ledger.
        anchor : Head, optional
            A head that another party kept. With it, a ledger that was cut, replaced by an
            older copy or begun anew is found.
        sync : {"entry", "commit", "together"}
            When entries are on disk: "entry", each when it is written. Else they are in the
            system's hands, which outlives this process and not a loss of power, and on disk when
            `commit` returns ("commit"), or when whoever opened the ledgers syncs the files of all
            sites ("together"); a simulation's ledgers alone are written so.

        Raises
        ------
        LedgerRefusal
            If the ledger belongs to another site or another key.
        TamperedError
            If the chain does not hold or does not contain ``anchor``.
        LedgerError
            If the file cannot be used.
        """
        return cls(Chain.open(path, site, signer, anchor, sync))

    def __repr__(self) -> str:
        return f"Ledger({str(self._chain.path)!r}, site={self._chain.state.site!r})"

    @property
    def id(self) -> str:
        """SHA-256 of the first entry, 64 hex digits; a ledger begun anew has another."""
        return self._chain.state.id

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """Take in once what other processes appended, for all that the block asks.

        What it decides is decided anew when it is written.
        """
        with self._lock:
            self._chain.look()
            self._looked = True
            try:
                yield
            finally:
                self._looked = False

    def _look(self) -> LedgerState:
        return self._chain.state if self._looked else self._chain.look()

    def check(self, planned: Sequence[Charge], ceiling: Ceiling) -> None:
        """Refuse a whole run that would exceed the ceiling; writes nothing.

        Parameters
        ----------
        planned : sequence of Charge
            Every charge that the run is going to make.
        ceiling : Ceiling
            The site's.

        Raises
        ------
        BudgetError
            If spent and planned events together exceed the ceiling (exit code 3).
        """
        with self._lock:
            self._look()
            self._require(planned, ceiling)

    def reserve(self, charge: Charge, ceiling: Ceiling) -> int:
        """Charge a round before it is trained; on disk when this returns.

        Parameters
        ----------
        charge : Charge
            What is going to happen.
        ceiling : Ceiling
            The site's. The check and the write are one transaction, so two processes at
            once cannot overspend.

        Returns
        -------
        int
            Number of the entry, for `commit`. Every call is a charge of its own: the same
            round asked again is a new attempt and is paid again.

        Raises
        ------
        BudgetError
            If the charge would exceed the ceiling; nothing was written (exit code 3).
        RepeatError
            If its statement, or a later attempt, was charged before: masks that served one
            update must not serve another.
        LedgerRefusal
            If its run was charged under another configuration before.
        """
        with self._lock:
            # Of what is known so far: the accountant remembers the answer, so that the write lock
            # is held briefly.
            self._require([charge], ceiling)
            with self._chain.writing() as append:
                self._once(charge.run, charge.purpose, charge.statement, charge.order_attempt)
                self._of_one_configuration(charge.run, charge.config)
                self._require([charge], ceiling)
                key = (charge.run, charge.round, charge.purpose)
                reservation = Reservation(
                    sequence=0,
                    run=charge.run,
                    round=charge.round,
                    attempt=self._chain.state.attempts[key] + 1,
                    purpose=charge.purpose,
                    account=charge.account,
                    unit=charge.unit,
                    delta=charge.delta,
                    ceiling=ceiling,
                    events=charge.events,
                    colluder_events=charge.seen_by("colluders"),
                    name=charge.name,
                    statement=charge.statement,
                    order_attempt=charge.order_attempt,
                    config=charge.config,
                )
                return append("reserve", reservation_body(reservation))

    def commit(self, reservation: int) -> None:
        """Note that a reserved round was finished and its result is about to leave.

        Parameters
        ----------
        reservation : int
            What `reserve` returned.

        Raises
        ------
        LedgerRefusal
            If there is no such reservation, or it was committed before: a result must not be
            released twice for one charge.
        """
        with self._lock, self._chain.writing() as append:
            if reservation not in self._chain.state.reservations:
                raise LedgerRefusal(
                    f"entry {reservation} is not a reservation", "reserve before training"
                )
            if reservation in self._chain.state.committed:
                raise LedgerRefusal(
                    f"reservation {reservation} was committed before",
                    "reserve again: every release is charged",
                )
            append("commit", {"reserve": reservation})
        self._chain.flush()

    def require_new(self, run: str, purpose: str, statement: str, order_attempt: int) -> None:
        """Refuse what `reserve` would refuse as a repetition, before anything else is asked.

        Raises
        ------
        RepeatError
            If the statement, or a later attempt, was charged before.
        """
        with self._lock:
            self._look()
            self._once(run, purpose, statement, order_attempt)

    def _once(self, run: str, purpose: str, statement: str, order_attempt: int) -> None:
        if self._chain.state.repeats(run, purpose, statement, order_attempt):
            raise RepeatError(
                f"attempt {order_attempt} of run {run} was carried out before; a second update "
                "under the same masks would give the first one away",
                "ask under a new attempt",
            )

    def require_config(self, run: str, config: str) -> None:
        """Refuse a run that was charged under another configuration before.

        What a run promises, its epsilon and its evaluations, was agreed to with the first.

        Raises
        ------
        LedgerRefusal
            If it was.
        """
        with self._lock:
            self._look()
            self._of_one_configuration(run, config)

    def _of_one_configuration(self, run: str, config: str) -> None:
        if self._chain.state.differs(run, config):
            raise LedgerRefusal(
                f"the run '{run}' was begun with another configuration than this one",
                "start a new run; a run keeps the configuration that its sites agreed to",
            )
        if run in self._chain.state.ended():
            raise LedgerRefusal(
                f"the run '{run}' was begun under this site's earlier ledger, and ended with it",
                "start a new run; what was spent in this one counts",
            )

    def settle(self, statement: str, survivors: str, sites: int) -> None:
        """Note which sum of a round may be opened; on disk when this returns.

        Parameters
        ----------
        statement : str
            Digest of the round's statement, as it was charged.
        survivors : str
            SHA-256 of the words that this site signs to name the sites in the sum.
        sites : int
            How many they are.

        Raises
        ------
        LedgerRefusal
            If this ledger was not charged for the statement, or for a later attempt or round
            too, or holds another sum for it.
        """
        with self._lock, self._chain.writing() as append:
            sequence = self._newest(statement)
            known = self._chain.state.settled.get(sequence)
            if known is None:
                append("settle", {"reserve": sequence, "survivors": survivors, "sites": sites})
            elif known.survivors != survivors:
                raise LedgerRefusal(
                    "this site has settled on other survivors of the round",
                    "repeat the round; the coordinator named two sets",
                )

    def settled(self, statement: str) -> SettledOn:
        """Return the sum on which `settle` agreed.

        Raises
        ------
        LedgerRefusal
            If it did not, or another attempt or round was begun since.
        """
        with self._lock:
            found = self._look().settled.get(self._newest(statement))
        if found is None:
            raise LedgerRefusal("this site has not settled on the survivors of this round")
        return found

    def _newest(self, statement: str) -> int:
        sequence = self._chain.state.open_reservation(statement)
        if sequence is None:
            raise LedgerRefusal(
                "this site did not take part in this attempt of the round, or has gone on"
            )
        return sequence

    def carry(self, carried: Sequence[Carried]) -> None:
        """Take over what was spent under an earlier ledger; counts for ever.

        Raises
        ------
        LedgerRefusal
            If the same was taken over, or stated, before.
        """
        with self._lock, self._chain.writing() as append:
            before = self._chain.state.carried
            known, stated = {_origin(one) for one in before}, [carry_body(one) for one in before]
            for one in carried:
                if one.head and _origin(one) in known:
                    raise LedgerRefusal(
                        f"the spending up to entry {one.head} was taken over before",
                        "nothing has to be done: it counts",
                    )
                if not one.head and carry_body(one) in stated:
                    raise LedgerRefusal(
                        "the same was stated before for this ledger",
                        "nothing has to be done: it counts; to state more, state another number",
                    )
                append("carry", carry_body(one))

    def events(self, account: str, view: View = "sums", unit: Unit | None = None) -> list[Event]:
        """Return every event that may have touched a unit behind an account, over all runs.

        ``unit`` is what is asked about; by default what the account's last charge protected.
        """
        with self._lock:
            state = self._look()
            return state.spent(account, unit or state.unit(account), view)

    def events_of_run(
        self, run: str, purpose: str | None = None, view: View = "sums"
    ) -> list[Event]:
        """Return every event that one run reserved, in order, whatever account it touched.

        ``purpose`` picks "training" or "evaluation"; ``view`` says who looks.
        """
        with self._lock:
            state = self._look()
            return [
                event
                for reservation in state.reservations.values()
                if reservation.run == run and purpose in (None, reservation.purpose)
                for event in reservation.seen_by(view)
            ]

    def spent(self, account: str, delta: float, view: View = "sums") -> EpsilonEstimate:
        """Return the epsilon of `events` at ``delta``."""
        return epsilon(self.events(account, view), delta)

    def head(self) -> Head:
        """Return the last entry, for others to keep as an anchor."""
        with self._lock:
            self._look()
            return self.last

    @property
    def last(self) -> Head:
        """The last entry that was seen or written here; unlike `head` it reads no file."""
        head = self._chain.state.head
        if head is None:
            raise TamperedError(f"the ledger {self._chain.path} is empty")
        return head

    def verify(self, anchor: Head | None = None) -> Verification:
        """Read the whole file again and check everything in it; see `verify_ledger`.

        Raises
        ------
        TamperedError
            If anything does not hold.
        """
        anchors = () if anchor is None else (anchor,)
        return verify_ledger(self._chain.path, self._chain.state.public_key, anchors)

    def _require(self, planned: Sequence[Charge], ceiling: Ceiling) -> None:
        for account, unit in dict.fromkeys((charge.account, charge.unit) for charge in planned):
            charges = [charge for charge in planned if may_share(charge.account, account)]
            first, last = charges[0], charges[-1]
            rounds = f"round {first.round}"
            if first.round != last.round:
                rounds = f"rounds {first.round} to {last.round}"
            what = f"{rounds} of run '{first.run}'"
            if math.isfinite(ceiling.epsilon):
                known = self._chain.state.charges(account)
                _require_one_unit(what, unit, {charge.unit for charge in (*known, *charges)})
            for view in VIEWS:
                events = [event for charge in charges for event in charge.seen_by(view)]
                spent = self._chain.state.spent(account, unit, view)
                self._guard.require(spent, events, ceiling, what, view)


def _origin(carried: Carried) -> tuple[tuple[str, ...], str, str, Unit]:
    return carried.covers, carried.head, carried.account, carried.unit


def _require_one_unit(what: str, unit: Unit, units: set[Unit]) -> None:
    """Refuse what another unit of privacy than the account's would leave without a bound."""
    if units <= {unit}:
        return
    (other,) = units - {unit}
    raise BudgetError(
        f"{what} protects each {unit}; this site's account was charged for protecting each "
        f"{other}, which bounds nothing for a {unit}",
        f"the account goes on protecting each {other} (data.unit of the site's policy); all that "
        "it ever spent was promised to those",
    )
