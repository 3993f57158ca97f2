"""What a chain of ledger entries means: charges, and what each account has spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedllm.canonical import from_hex, reading
from fedllm.errors import ConfigError
from fedllm.privacy.accounting.events import Event, NonPrivate, from_json, to_json
from fedllm.privacy.ledger.budget import Ceiling, View
from fedllm.privacy.ledger.entries import Entry, Head, TamperedError
from fedllm.privacy.ledger.fingerprints import DESCRIPTION, Unit

NEIGHBOURS = "zero-out one unit"


@dataclass(frozen=True, slots=True)
class KnownDataset:
    """A data set of a ledger that was charged by data set; see `fedllm.privacy.ledger.rules`.

    Attributes
    ----------
    id : str
        64 hex digits; see `DatasetIdentity.id`.
    unit : {"record", "person"}
        Unit of privacy of everything charged to it.
    description : mapping
        Counts and digests, as in `DatasetIdentity.describe`.
    overlaps : tuple of str
        Earlier data sets that share a record or a person with it.
    sequence : int
        The entry that made it known.
    """

    id: str
    unit: Unit
    description: Mapping[str, Any]
    overlaps: tuple[str, ...]
    sequence: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """A charge in the ledger; spent for ever, committed or not.

    Attributes
    ----------
    account : str
        The declared account that it counts for; empty: it counts for every account.
    unit : {"record", "person"}
        What was protected.
    dataset : str
        The data set that was charged under the rule of before; empty since.
    statement : str
        Digest of the round's statement, hexadecimal; empty in ledgers of before.
    order_attempt : int
        The coordinator's number of the attempt, with a statement.
    """

    sequence: int
    run: str
    round: int
    attempt: int
    purpose: str
    account: str
    unit: Unit
    delta: float
    ceiling: Ceiling
    events: tuple[Event, ...]
    colluder_events: tuple[Event, ...]
    name: str = ""
    dataset: str = ""
    statement: str = ""
    order_attempt: int = 0

    def seen_by(self, view: View) -> tuple[Event, ...]:
        """Return the events in the eyes of one kind of observer."""
        return self.events if view == "sums" else self.colluder_events


@dataclass(frozen=True, slots=True)
class SettledOn:
    """Which sum a site let anybody open of one reserved round.

    Attributes
    ----------
    survivors : str
        SHA-256 of the signed words that name its sites, hexadecimal.
    sites : int
        How many they are.
    """

    survivors: str
    sites: int


@dataclass(frozen=True, slots=True)
class Carried:
    """What was spent before this ledger was begun, under a ledger or keys that were lost.

    Attributes
    ----------
    covers : tuple of str
        Public keys (hexadecimal) of the earlier ledgers whose spending this is.
    head : str
        Last entry of the earlier ledger; empty where the spending is only stated.
    unit : {"record", "person"}
        What was protected.
    events, colluder_events, account
        As in `Reservation`.
    """

    covers: tuple[str, ...]
    head: str
    unit: Unit
    events: tuple[Event, ...]
    colluder_events: tuple[Event, ...]
    sequence: int = 0
    account: str = ""

    def seen_by(self, view: View) -> tuple[Event, ...]:
        """Return the events in the eyes of one kind of observer."""
        return self.events if view == "sums" else self.colluder_events


def may_share(one: str, other: str) -> bool:
    """Whether sources of two accounts may hold the same person, or the same record.

    Only two declared accounts of different names may not: the site's operator said so. What
    was charged without a declaration may have touched anything.
    """
    return not one or not other or one == other


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
        _exactly(entry.body, "public_key", "nonce")
        self.site = entry.content["site"]
        self.public_key = from_hex(entry.body["public_key"])
        self.id = entry.hash.hex()

    def _dataset(self, entry: Entry) -> None:
        body = entry.body
        _exactly(body, "dataset", "overlaps", "description")
        _exactly(body["description"], *DESCRIPTION)
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
        self.attempts[key] += 1
        self.reservations[entry.sequence] = reservation
        self.newest[reservation.run, reservation.purpose] = entry.sequence
        if reservation.statement:
            self.statements[reservation.statement] = entry.sequence

    def _require_earlier_rule(self) -> None:
        # A ledger goes over to accounts once, and never back.
        last = next(reversed(self.reservations.values()), None)
        if last is not None and not last.dataset:
            raise ValueError("a data set after a charge to an account")

    def _commit(self, entry: Entry) -> None:
        _exactly(entry.body, "reserve")
        reserve = entry.body["reserve"]
        if reserve not in self.reservations or reserve in self.committed:
            raise ValueError("nothing to commit")
        if type(reserve) is not int:
            raise ValueError("not a number")
        self.committed[reserve] = entry.sequence

    def _settle(self, entry: Entry) -> None:
        body = entry.body
        _exactly(body, "reserve", "survivors", "sites")
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


def _exactly(body: Mapping[str, Any], *names: str) -> None:
    if set(body) != set(names):
        raise ValueError("fields")


def reservation_body(reservation: Reservation) -> dict[str, Any]:
    """Return a reservation as plain values; `reservation_of` reads them back."""
    ceiling = reservation.ceiling
    unlimited = ceiling.epsilon == float("inf")
    limits = {"epsilon": None if unlimited else ceiling.epsilon, "delta": ceiling.delta}
    if ceiling.colluders_epsilon != float("inf"):
        limits["colluders_epsilon"] = ceiling.colluders_epsilon
    # Ledgers of before have none; nothing depends on it, and it is signed like the rest.
    named = {"run_name": reservation.name} if reservation.name else {}
    stated: dict[str, Any] = {}
    if reservation.statement:
        stated = {
            "statement": reservation.statement,
            "order_attempt": reservation.order_attempt,
        }
    by_dataset = {"dataset": reservation.dataset}
    return {
        **named,
        **stated,
        **(by_dataset if reservation.dataset else {"account": reservation.account}),
        "run": reservation.run,
        "round": reservation.round,
        "attempt": reservation.attempt,
        "purpose": reservation.purpose,
        "unit": reservation.unit,
        "neighbours": NEIGHBOURS,
        "delta": reservation.delta,
        "ceiling": limits,
        "events": [to_json(event) for event in reservation.events],
        "colluder_events": [to_json(event) for event in reservation.colluder_events],
    }


def reservation_of(entry: Entry) -> Reservation:
    """Read a reservation back from its entry.

    Raises
    ------
    KeyError, TypeError, ValueError, ConfigError
        If the body is not one that `reservation_body` makes.
    """
    body = entry.body
    ceiling = dict(body["ceiling"])
    against_colluders = ceiling.pop("colluders_epsilon", float("inf"))
    _exactly(ceiling, "epsilon", "delta")
    reservation = Reservation(
        sequence=entry.sequence,
        run=body["run"],
        round=body["round"],
        attempt=body["attempt"],
        purpose=body["purpose"],
        account=body.get("account", ""),
        unit=body["unit"],
        delta=body["delta"],
        ceiling=Ceiling(
            float("inf") if ceiling["epsilon"] is None else ceiling["epsilon"],
            ceiling["delta"],
            against_colluders,
        ),
        events=tuple(from_json(event) for event in body["events"]),
        colluder_events=tuple(from_json(event) for event in body["colluder_events"]),
        name=body.get("run_name", ""),
        dataset=body.get("dataset", ""),
        statement=body.get("statement", ""),
        order_attempt=body.get("order_attempt", 0),
    )
    if reservation.statement:
        from_hex(reservation.statement, 32)
    if reservation_body(reservation) != body or not reservation.events:
        raise ValueError("fields")
    texts = (reservation.run, reservation.purpose, reservation.account, reservation.dataset)
    if not all(isinstance(text, str) for text in (*texts, reservation.name)):
        raise ValueError("not text")
    if reservation.unit not in ("record", "person"):
        raise ValueError("unit")
    numbers = (reservation.round, reservation.attempt, reservation.order_attempt)
    if any(type(number) is not int for number in numbers) or type(reservation.delta) is not float:
        raise ValueError("not a number")
    return reservation


def carry_body(carried: Carried) -> dict[str, Any]:
    """Return what was carried over as plain values; `carried_of` reads them back."""
    # Ledgers of before have none.
    declared = {"account": carried.account} if carried.account else {}
    return {
        **declared,
        "covers": list(carried.covers),
        "head": carried.head,
        "unit": carried.unit,
        "neighbours": NEIGHBOURS,
        "events": [to_json(event) for event in carried.events],
        "colluder_events": [to_json(event) for event in carried.colluder_events],
    }


def carried_of(entry: Entry) -> Carried:
    """Read back what was carried over; errors as in `reservation_of`."""
    body = entry.body
    carried = Carried(
        covers=tuple(str(key) for key in body["covers"]),
        head=str(body["head"]),
        unit=body["unit"],
        events=tuple(from_json(event) for event in body["events"]),
        colluder_events=tuple(from_json(event) for event in body["colluder_events"]),
        sequence=entry.sequence,
        account=body.get("account", ""),
    )
    if not isinstance(carried.account, str) or carry_body(carried) != body:
        raise ValueError("fields")
    return carried
