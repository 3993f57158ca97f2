"""What each charge had to keep to, by the rule of its time.

Today an account decides: `LedgerState.spent`. Before, a data set did. It was a set of
fingerprints and counted what was charged to every data set that shared a record or person with
it; so records decided what was refused, and one file read for three tasks had three budgets.
Charges of that time were right by that rule, and count for every account.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedllm.privacy.accounting.events import Event, NonPrivate
from fedllm.privacy.ledger.budget import VIEWS, View
from fedllm.privacy.ledger.charges import KnownDataset, Reservation
from fedllm.privacy.ledger.entries import TamperedError
from fedllm.privacy.ledger.fingerprints import DatasetIdentity, share_a_tag
from fedllm.privacy.ledger.state import LedgerState

Tags = dict[str, tuple[bytes, bytes]]


def check_datasets(state: LedgerState, stored: Iterable[tuple[int, bytes, bytes]]) -> None:
    """Check the fingerprints of a ledger's data sets, and which of them overlap.

    Parameters
    ----------
    state : LedgerState
        What the ledger's entries say.
    stored : iterable of (int, bytes, bytes)
        A data set's entry, its record tags and its person tags.

    Raises
    ------
    TamperedError
        If tags are missing, too many, or not those that were signed, or an overlap was hidden.
    """
    tags = _tags_of(stored, state)
    earlier: list[str] = []
    for dataset in state.datasets.values():
        mine = tags[dataset.id]
        shared = [
            other
            for other in earlier
            if any(share_a_tag(a, b) for a, b in zip(tags[other], mine, strict=True))
        ]
        if sorted(shared) != sorted(dataset.overlaps):
            raise TamperedError(
                f"data set {dataset.id[:12]} does not name all data sets that it overlaps"
            )
        earlier.append(dataset.id)


def _tags_of(stored: Iterable[tuple[int, bytes, bytes]], state: LedgerState) -> Tags:
    found: Tags = {}
    by_sequence = {dataset.sequence: dataset for dataset in state.datasets.values()}
    for sequence, records, persons in stored:
        dataset = by_sequence.get(sequence)
        if dataset is None or dataset.id in found:
            raise TamperedError(f"fingerprints belong to no data set: entry {sequence}")
        found[dataset.id] = (records, persons)
    for dataset in by_sequence.values():
        if dataset.id not in found or not _signed(dataset, *found[dataset.id]):
            raise TamperedError(
                f"the fingerprints of data set {dataset.id[:12]} are not those that were signed"
            )
    return found


def _signed(dataset: KnownDataset, records: bytes, persons: bytes) -> bool:
    identity = DatasetIdentity(
        dataset.unit, str(dataset.description["key_check"]), records, persons
    )
    return identity.id == dataset.id and identity.describe() == dataset.description


@dataclass(frozen=True, slots=True)
class Promise:
    """A ceiling that the last charge under it was checked against.

    Attributes
    ----------
    who : str
        "its account", or the data set that was charged, for messages.
    view : {"sums", "colluders"}
        In whose eyes.
    ceiling, delta : float
        The most that might be spent; never infinite.
    events : list of Event
        All that counted by then.
    """

    who: str
    view: View
    ceiling: float
    delta: float
    events: list[Event]


def promises(state: LedgerState, account: str) -> Iterator[Promise]:
    """Return what each charge to an account had to keep to, by the rule of its time.

    Spending only grows, so the last charge under a ceiling stands for all of them.
    """
    own = [one for one in state.reservations.values() if one.account == account]
    last = {(one.dataset, one.unit, one.ceiling): one for one in own}
    for charge in last.values():
        for view in VIEWS:
            ceiling = charge.ceiling.limit(view)
            if ceiling == float("inf"):
                continue
            if charge.dataset:
                who, events = f"data set {charge.dataset[:12]}", _by_dataset(state, charge, view)
            else:
                who = f"account '{account}'" if account else "the site's account"
                events = state.spent(account, charge.unit, view, charge.sequence)
            yield Promise(who, view, ceiling, charge.ceiling.delta, events)


def _by_dataset(state: LedgerState, last: Reservation, view: View) -> list[Event]:
    """Return what counted for a data set when it was charged last."""
    related, events = _related(state, last.dataset), list[Event]()
    for charge in state.charges("", until=last.sequence):
        if isinstance(charge, Reservation) and charge.dataset not in related:
            continue
        events += charge.seen_by(view) if charge.unit == last.unit else [NonPrivate()]
    return events


def _related(state: LedgerState, dataset: str) -> set[str]:
    return {
        other.id
        for other in state.datasets.values()
        if other.id == dataset
        or dataset in other.overlaps
        or other.id in state.datasets[dataset].overlaps
    }
