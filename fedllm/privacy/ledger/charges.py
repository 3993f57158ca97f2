"""What a charge is, and how it is written in the body of an entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedllm.canonical import from_hex
from fedllm.privacy.accounting.events import Event, from_json, to_json
from fedllm.privacy.ledger.budget import Ceiling, View
from fedllm.privacy.ledger.entries import Entry
from fedllm.privacy.ledger.fingerprints import Unit

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
    config : str
        Digest of the run's configuration, hexadecimal; empty in ledgers of before.
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
    config: str = ""

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
    runs : tuple of str
        The runs that this was spent in, which end with the earlier ledger; empty in ledgers of
        before.
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
    runs: tuple[str, ...] = ()

    def seen_by(self, view: View) -> tuple[Event, ...]:
        """Return the events in the eyes of one kind of observer."""
        return self.events if view == "sums" else self.colluder_events


def may_share(one: str, other: str) -> bool:
    """Whether sources of two accounts may hold the same person, or the same record.

    Only two declared accounts of different names may not: the site's operator said so. What
    was charged without a declaration may have touched anything.
    """
    return not one or not other or one == other


def exactly(body: Mapping[str, Any], *names: str) -> None:
    """Raise a `ValueError` unless a body has these fields and no others."""
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
    if reservation.config:
        stated["config"] = reservation.config
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
    exactly(ceiling, "epsilon", "delta")
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
        config=body.get("config", ""),
    )
    for digest in filter(None, (reservation.statement, reservation.config)):
        from_hex(digest, 32)
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
    ended = {"runs": list(carried.runs)} if carried.runs else {}
    return {
        **declared,
        **ended,
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
        runs=tuple(str(run) for run in body.get("runs", ())),
    )
    if not isinstance(carried.account, str) or carry_body(carried) != body:
        raise ValueError("fields")
    return carried
