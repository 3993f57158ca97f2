"""What a chain of ledger entries means: data sets, charges, and what each has spent."""

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
    """A data set that the ledger has seen.

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
    """A charge in the ledger; spent for ever, committed or not."""

    sequence: int
    run: str
    round: int
    attempt: int
    purpose: str
    dataset: str
    delta: float
    ceiling: Ceiling
    events: tuple[Event, ...]
    colluder_events: tuple[Event, ...]
    name: str = ""

    def seen_by(self, view: View) -> tuple[Event, ...]:
        """Return the events in the eyes of one kind of observer."""
        return self.events if view == "sums" else self.colluder_events


@dataclass(frozen=True, slots=True)
class Carried:
    """What was spent before this ledger was begun, under a ledger or keys that were lost.

    Which records it touched is not known any more, so it counts for every data set.

    Attributes
    ----------
    covers : tuple of str
        Public keys (hexadecimal) of the earlier ledgers whose spending this is.
    head : str
        Last entry of the earlier ledger; empty where the spending is only stated.
    unit : {"record", "person"}
        What was protected.
    events, colluder_events
        As in `Reservation`.
    """

    covers: tuple[str, ...]
    head: str
    unit: Unit
    events: tuple[Event, ...]
    colluder_events: tuple[Event, ...]
    sequence: int = 0

    def seen_by(self, view: View) -> tuple[Event, ...]:
        """Return the events in the eyes of one kind of observer."""
        return self.events if view == "sums" else self.colluder_events


@dataclass(slots=True)
class LedgerState:
    """Everything that the entries so far say; only `apply` changes it."""

    site: str = ""
    public_key: bytes = b""
    head: Head | None = None
    datasets: dict[str, KnownDataset] = field(default_factory=dict)
    reservations: dict[int, Reservation] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
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
        if not isinstance(known.id, str):
            raise TypeError("not text")
        if known.unit not in ("record", "person") or known.id in self.datasets:
            raise ValueError("unit or repetition")
        if not all(other in self.datasets for other in known.overlaps):
            raise ValueError("unknown overlap")
        self.datasets[known.id] = known

    def _reserve(self, entry: Entry) -> None:
        reservation = reservation_of(entry)
        key = (reservation.run, reservation.round, reservation.purpose)
        if reservation.dataset not in self.datasets:
            raise ValueError("unknown data set")
        if reservation.attempt != self.attempts[key] + 1:
            raise ValueError("attempt out of order")
        if entry.body["unit"] != self.datasets[reservation.dataset].unit:
            raise ValueError("unit")
        self.attempts[key] += 1
        self.reservations[entry.sequence] = reservation

    def _commit(self, entry: Entry) -> None:
        _exactly(entry.body, "reserve")
        reserve = entry.body["reserve"]
        if reserve not in self.reservations or reserve in self.committed:
            raise ValueError("nothing to commit")
        self.committed[reserve] = entry.sequence

    def _carry(self, entry: Entry) -> None:
        carried = carried_of(entry)
        if carried.unit not in ("record", "person") or not carried.covers:
            raise ValueError("unit or keys")
        self.carried.append(carried)

    def covered(self) -> set[str]:
        """Return the public keys of earlier ledgers whose spending was taken over."""
        return {key for carried in self.carried for key in carried.covers}

    def related(self, dataset: str) -> set[str]:
        """Return ``dataset`` and every data set that shares a record or person with it."""
        return {
            other.id
            for other in self.datasets.values()
            if other.id == dataset
            or dataset in other.overlaps
            or other.id in self.datasets[dataset].overlaps
        }

    def spent(self, dataset: str, view: View = "sums", until: int | None = None) -> list[Event]:
        """Return every event that may have touched a unit of a data set.

        What was carried over from an earlier ledger, and all charges of all data sets that
        share anything with it, reserved or committed. A
        charge for another unit of privacy counts as not private: protection of single
        records bounds nothing for a person, and a person that is protected as a whole says
        little about a change inside one of the person's records.

        ``until`` leaves out what was charged after that entry.
        """
        unit, related = self.datasets[dataset].unit, self.related(dataset)
        events: list[Event] = []
        for carried in self.carried:
            if until is None or carried.sequence <= until:
                events += carried.seen_by(view) if carried.unit == unit else [NonPrivate()]
        for reservation in self.reservations.values():
            if until is not None and reservation.sequence > until:
                break
            if reservation.dataset not in related:
                continue
            same_unit = self.datasets[reservation.dataset].unit == unit
            events += reservation.seen_by(view) if same_unit else [NonPrivate()]
        return events


def _exactly(body: Mapping[str, Any], *names: str) -> None:
    if set(body) != set(names):
        raise ValueError("fields")


def reservation_body(reservation: Reservation, unit: Unit) -> dict[str, Any]:
    """Return a reservation as plain values; `reservation_of` reads them back."""
    ceiling = reservation.ceiling
    unlimited = ceiling.epsilon == float("inf")
    limits = {"epsilon": None if unlimited else ceiling.epsilon, "delta": ceiling.delta}
    if ceiling.colluders_epsilon != float("inf"):
        limits["colluders_epsilon"] = ceiling.colluders_epsilon
    # Ledgers of before have none; nothing depends on it, and it is signed like the rest.
    named = {"run_name": reservation.name} if reservation.name else {}
    return {
        **named,
        "run": reservation.run,
        "round": reservation.round,
        "attempt": reservation.attempt,
        "purpose": reservation.purpose,
        "dataset": reservation.dataset,
        "unit": unit,
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
        dataset=body["dataset"],
        delta=body["delta"],
        ceiling=Ceiling(
            float("inf") if ceiling["epsilon"] is None else ceiling["epsilon"],
            ceiling["delta"],
            against_colluders,
        ),
        events=tuple(from_json(event) for event in body["events"]),
        colluder_events=tuple(from_json(event) for event in body["colluder_events"]),
        name=body.get("run_name", ""),
    )
    if not isinstance(reservation.name, str):
        raise ValueError("name")
    if reservation_body(reservation, body["unit"]) != body or not reservation.events:
        raise ValueError("fields")
    texts = (reservation.run, reservation.purpose, reservation.dataset)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not text")
    numbers = (reservation.round, reservation.attempt)
    if any(type(number) is not int for number in numbers) or type(reservation.delta) is not float:
        raise ValueError("not a number")
    return reservation


def carry_body(carried: Carried) -> dict[str, Any]:
    """Return what was carried over as plain values; `carried_of` reads them back."""
    return {
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
    )
    if carry_body(carried) != body:
        raise ValueError("fields")
    return carried
