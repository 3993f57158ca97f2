"""What a chain of ledger entries means: charges, and what each account has spent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fedllm.canonical import from_hex, reading
from fedllm.errors import ConfigError
from fedllm.privacy.accounting.events import Event, NonPrivate
from fedllm.privacy.ledger.budget import View
from fedllm.privacy.ledger.charges import (
    Carried,
    KnownDataset,
    Reservation,
    SettledOn,
    carried_of,
    exactly,
    may_share,
    reservation_of,
)
from fedllm.privacy.ledger.entries import Entry, Head, TamperedError
from fedllm.privacy.ledger.fingerprints import DESCRIPTION, Unit


@dataclass(slots=True)
class LedgerState:
    """Everything that the entries so far say; only `apply` changes it."""

    site: str = ""
    id: str = ""
    public_key: bytes = b""
    head: Head | None = None
    datasets: dict[str, KnownDataset] = field(default_factory=dict)
    reservations: dict[int, Reservation] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    settled: dict[int, SettledOn] = field(default_factory=dict)
    statements: dict[str, int] = field(default_factory=dict)
    configs: dict[str, str] = field(default_factory=dict)
    newest: dict[tuple[str, str], int] = field(default_factory=dict)
    attempts: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    carried: list[Carried] = field(default_factory=list)

    def apply(self, entry: Entry) -> None:
        """Take in the next entry of a chain that was already checked.

        Raises
        ------
        TamperedError
            If a rightly signed entry says something impossible.
        """
        readers = {
            "open": self._open,
            "dataset": self._dataset,
            "reserve": self._reserve,
            "commit": self._commit,
            "settle": self._settle,
            "carry": self._carry,
        }
        impossible = TamperedError(
            f"entry {entry.sequence} is signed but says something impossible",
            "a program that is not fedllm, or another version, wrote this ledger",
        )
        try:
            with reading(impossible):
                readers[entry.kind](entry)
        except ConfigError:
            raise impossible from None
        self.head = entry.head

    def _open(self, entry: Entry) -> None:
        exactly(entry.body, "public_key", "nonce")
        self.site = entry.content["site"]
        self.public_key = from_hex(entry.body["public_key"])
        self.id = entry.hash.hex()

    def _dataset(self, entry: Entry) -> None:
        body = entry.body
        exactly(body, "dataset", "overlaps", "description")
        exactly(body["description"], *DESCRIPTION)
        known = KnownDataset(
            body["dataset"],
            body["description"]["unit"],
            body["description"],
            tuple(body["overlaps"]),
            entry.sequence,
        )
        if not isinstance(known.id, str) or not known.id:
            raise TypeError("not text")
        if known.unit not in ("record", "person") or known.id in self.datasets:
            raise ValueError("unit or repetition")
        if not all(other in self.datasets for other in known.overlaps):
            raise ValueError("unknown overlap")
        self._require_earlier_rule()
        self.datasets[known.id] = known

    def _reserve(self, entry: Entry) -> None:
        reservation = reservation_of(entry)
        key = (reservation.run, reservation.round, reservation.purpose)
        if reservation.attempt != self.attempts[key] + 1:
            raise ValueError("attempt out of order")
        if reservation.dataset:
            self._require_earlier_rule()
            if reservation.unit != self.datasets[reservation.dataset].unit:
                raise ValueError("unit")
        order = (reservation.statement, reservation.order_attempt)
        if self.repeats(reservation.run, reservation.purpose, *order):
            raise ValueError("an order carried out twice")
        if self.differs(reservation.run, reservation.config):
            raise ValueError("a second configuration of a run")
        if reservation.run in self.ended():
            raise ValueError("a run of an earlier ledger")
        self.attempts[key] += 1
        self.reservations[entry.sequence] = reservation
        self.newest[reservation.run, reservation.purpose] = entry.sequence
        if reservation.statement:
            self.statements[reservation.statement] = entry.sequence
        if reservation.config:
            self.configs[reservation.run] = reservation.config

    def _require_earlier_rule(self) -> None:
        # A ledger goes over to accounts once, and never back.
        last = next(reversed(self.reservations.values()), None)
        if last is not None and not last.dataset:
            raise ValueError("a data set after a charge to an account")

    def _commit(self, entry: Entry) -> None:
        exactly(entry.body, "reserve")
        reserve = entry.body["reserve"]
        if reserve not in self.reservations or reserve in self.committed:
            raise ValueError("nothing to commit")
        if type(reserve) is not int:
            raise ValueError("not a number")
        self.committed[reserve] = entry.sequence

    def _settle(self, entry: Entry) -> None:
        body = entry.body
        exactly(body, "reserve", "survivors", "sites")
        reserve, sites = body["reserve"], body["sites"]
        statement = self.reservations[reserve].statement
        if reserve in self.settled or self.open_reservation(statement) != reserve:
            raise ValueError("nothing to settle")
        from_hex(body["survivors"], 32)
        if type(reserve) is not int or type(sites) is not int or sites < 1:
            raise ValueError("not a number")
        self.settled[reserve] = SettledOn(body["survivors"], sites)

    def repeats(self, run: str, purpose: str, statement: str, order_attempt: int) -> bool:
        """Tell whether an order, or a later attempt of its run and purpose, was charged before."""
        if not statement:
            return False
        last = self.newest.get((run, purpose))
        earlier = 0 if last is None else self.reservations[last].order_attempt
        return statement in self.statements or order_attempt <= earlier

    def differs(self, run: str, config: str) -> bool:
        """Tell whether a run was charged under another configuration before."""
        return bool(config) and self.configs.get(run, config) != config

    def open_reservation(self, statement: str) -> int | None:
        """Return the reservation of a statement if the run has none of its purpose after it."""
        sequence = self.statements.get(statement)
        if sequence is None:
            return None
        own = self.reservations[sequence]
        return sequence if self.newest[own.run, own.purpose] == sequence else None

    def _carry(self, entry: Entry) -> None:
        carried = carried_of(entry)
        if carried.unit not in ("record", "person") or not carried.covers:
            raise ValueError("unit or keys")
        self.carried.append(carried)

    def covered(self) -> set[str]:
        """Return the public keys of earlier ledgers whose spending was taken over."""
        return {key for carried in self.carried for key in carried.covers}

    def ended(self) -> set[str]:
        """Return the runs that ended with an earlier ledger: what they promised is not known."""
        return {run for carried in self.carried for run in carried.runs}

    def accounts(self) -> list[str]:
        """Return the accounts that were charged, in the order of their first charge."""
        return list(dict.fromkeys(charge.account for charge in self.charges("")))

    def charges(self, account: str, until: int | None = None) -> list[Carried | Reservation]:
        """Return all that counts for an account: what may have touched the records behind it.

        ``until`` leaves out what was charged after that entry.
        """
        charges: list[Carried | Reservation] = [*self.carried, *self.reservations.values()]
        return [
            charge
            for charge in charges
            if may_share(charge.account, account) and (until is None or charge.sequence <= until)
        ]

    def unit(self, account: str) -> Unit:
        """Return what the last charge that counts for an account protected."""
        charges = self.charges(account)
        return max(charges, key=lambda charge: charge.sequence).unit if charges else "record"

    def spent(
        self, account: str, unit: Unit, view: View = "sums", until: int | None = None
    ) -> list[Event]:
        """Return every event that may have touched a unit behind an account.

        Carried over, reserved or committed. A charge for another unit of privacy counts as not
        private: protection of single records bounds nothing for a person, and a person that is
        protected as a whole says little about a change inside one of the person's records.
        """
        events: list[Event] = []
        for charge in self.charges(account, until):
            events += charge.seen_by(view) if charge.unit == unit else [NonPrivate()]
        return events
