"""Verify and export a ledger, and recompute every epsilon, with no secret of the site."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedllm.canonical import from_hex
from fedllm.errors import ConfigError
from fedllm.files import given_path, write_bytes
from fedllm.privacy.accounting.accountants import EpsilonEstimate, epsilon
from fedllm.privacy.accounting.events import Event, fold
from fedllm.privacy.ledger.budget import Ceiling
from fedllm.privacy.ledger.charges import Carried, Reservation
from fedllm.privacy.ledger.entries import (
    Head,
    RawEntry,
    TamperedError,
    read_chain,
    signature_holds,
)
from fedllm.privacy.ledger.exports import FIRST_PAGE, exported, has_traces, stored_entries
from fedllm.privacy.ledger.fingerprints import Unit
from fedllm.privacy.ledger.rules import check_datasets, promises
from fedllm.privacy.ledger.state import LedgerState
from fedllm.privacy.ledger.store import SQLITE


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run's charges to one account; ``name`` is empty where no charge gives it."""

    run: str
    name: str
    committed: int
    reserved_only: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class AccountReport:
    """What one account has spent, recomputed from its events.

    Attributes
    ----------
    account : str
        As the site's policy declares it; empty: all of the site's records.
    unit : {"record", "person"}
        What its last charge protected.
    ceiling : Ceiling or None
        The one that was asked about, or else that its last charge was checked against.
    spent, spent_against_colluders : EpsilonEstimate
        At the ceiling's delta, or at 1e-5 where nothing was charged; with all that counts for
        the account.
    spent_adaptively : float or None
        Upper bound on ``spent`` whatever the coordinator chose its charges by; None where there
        is no ceiling, which says near which epsilon it is sharp.
    runs : tuple of RunReport
        In the order of their first charge; their epsilons do not add up to ``spent``.
    """

    account: str
    unit: Unit
    ceiling: Ceiling | None
    spent: EpsilonEstimate
    spent_against_colluders: EpsilonEstimate
    spent_adaptively: float | None
    runs: tuple[RunReport, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """A ledger that was found in order.

    Attributes
    ----------
    site, public_key : str
        Whose it is.
    head : Head
        Its last entry.
    accounts : tuple of AccountReport
        In the order of their first charge; the site's where nothing was charged.
    carried : tuple of Carried
        What was spent before it was begun.
    by_dataset : int
        Charges under the rule of before, by data set; they count for every account.
    """

    site: str
    public_key: str
    head: Head
    accounts: tuple[AccountReport, ...]
    carried: tuple[Carried, ...]
    by_dataset: int


def verify_ledger(
    path: Path,
    public_key: bytes | None = None,
    anchors: Sequence[Head] = (),
    policy: Ceiling | None = None,
    account: str = "",
) -> Verification:
    """Check a ledger file or an export of one, and recompute its epsilons.

    Parameters
    ----------
    path : Path
        The SQLite file, or what `export_ledger` wrote.
    public_key : bytes, optional
        The site's raw Ed25519 key from a trustworthy place. Left out, only agreement with
        the key in the file is shown, which anyone who rewrites all of it can have.
    anchors : sequence of Head
        Heads kept by another party; without one a cut at the end cannot be seen.
    policy : Ceiling, optional
        To report under, instead of the ceilings in the ledger, which are checked all the same.
    account : str
        The policy's, which is reported even if it was never charged.

    Raises
    ------
    TamperedError
        If an entry was edited, removed, moved, cut off, signed by another key, refers to
        other tags, or was charged although it exceeded its ceiling.
    NoLedgerError
        If the file cannot be read or is something else.
    """
    state = read_state(path, public_key, anchors)
    if state.head is None:
        raise TamperedError(f"{path} holds no entries")
    for name in state.accounts():
        for promise in promises(state, name):
            total = epsilon(promise.events, promise.delta).value
            if total <= promise.ceiling:
                continue
            eyes = "" if promise.view == "sums" else " for everyone else colluding"
            raise TamperedError(
                f"{promise.who} was charged to epsilon {total:.4g}{eyes}, above its "
                f"ceiling {promise.ceiling:g} at delta {promise.delta:g}",
                "the program that wrote this ledger did not keep the budget; train no more",
            )
    return Verification(
        state.site,
        state.public_key.hex(),
        state.head,
        report(state, policy, account),
        tuple(state.carried),
        sum(bool(charge.dataset) for charge in state.reservations.values()),
    )


def read_state(
    path: Path, public_key: bytes | None = None, anchors: Sequence[Head] = ()
) -> LedgerState:
    """Check a ledger's chain, signatures and fingerprints, and return what it says.

    Computes no epsilon; arguments and errors as in `verify_ledger`.
    """
    stored, stored_tags = stored_entries(path)
    if public_key is not None and stored and not _signs_any(public_key, stored):
        _refuse_another_key(stored)
    state = LedgerState()
    for entry in read_chain(stored, public_key=public_key):
        state.apply(entry)
    if state.head is None:
        raise TamperedError(f"{path} holds no entries")
    if public_key is not None and state.public_key != public_key:
        raise TamperedError("the ledger was begun with another key than the site's")
    try:
        check_anchors(stored, anchors)
    except TamperedError as error:
        raise _perhaps_of_before(error, state) from None
    for anchor in anchors:
        digest, signature = from_hex(anchor.hash), from_hex(anchor.signature)
        if signature and not signature_holds(state.public_key, digest, signature):
            raise TamperedError(
                f"the head kept of entry {anchor.sequence} is not signed with this ledger's key"
            )
    check_datasets(state, stored_tags)
    return state


def _perhaps_of_before(error: TamperedError, state: LedgerState) -> TamperedError:
    """Say that a head may be of a ledger that this one took over, which it cannot show."""
    before = [one.head.partition(":")[0] for one in state.carried if one.head]
    if not before:
        return error
    return TamperedError(
        f"{error.message}; or it is of an earlier ledger, which this one took over",
        f"check the earlier one, which ended with entry {before[-1]}, by a copy or an export, and "
        "this one by heads that came later",
    )


def _signs_any(public_key: bytes, stored: Sequence[RawEntry]) -> bool:
    return any(signature_holds(public_key, raw.hash, raw.signature) for raw in stored)


def _refuse_another_key(stored: Sequence[RawEntry]) -> None:
    """Say that a key is not this ledger's, unless the ledger does not hold under its own either."""
    first, *_ = read_chain(stored)
    raise TamperedError(
        "no entry is signed with the key that was given; the ledger names the key "
        f"{first.body['public_key']} and holds under that one",
        "compare the key with the one in the signed roster: it may be another site's, or mistyped; "
        "if it is right, this is not the site's ledger: spend nothing more on this data",
    )


def check_anchors(stored: Iterable[RawEntry], anchors: Sequence[Head]) -> None:
    """See that all anchored heads are still in the ledger.

    Raises
    ------
    TamperedError
        If one is missing (the end was cut off) or another entry stands in its place.
    """
    if not anchors:
        return
    there = {raw.sequence: raw.hash.hex() for raw in stored}
    for anchor in anchors:
        if anchor.sequence not in there:
            raise TamperedError(
                f"the ledger was cut off: entry {anchor.sequence} is anchored but missing"
            )
        if there[anchor.sequence] != anchor.hash:
            raise TamperedError(
                f"entry {anchor.sequence} is not the anchored one: the ledger was rewritten"
            )


def report(
    state: LedgerState, ceiling: Ceiling | None = None, account: str = ""
) -> tuple[AccountReport, ...]:
    """Recompute what every account and run has spent.

    ``ceiling`` is the one to look at it under, and ``account`` the one that it is for; by default
    it is that of each account's last charge.
    """
    charged = state.accounts()
    accounts = dict.fromkeys([*charged, account] if ceiling or not charged else charged)
    return tuple(_account_report(state, name, ceiling) for name in accounts)


def _account_report(state: LedgerState, account: str, ceiling: Ceiling | None) -> AccountReport:
    own = [charge for charge in state.reservations.values() if charge.account == account]
    if ceiling is None and own:
        ceiling = own[-1].ceiling
    delta, unit = ceiling.delta if ceiling else 1e-5, state.unit(account)
    runs = []
    for run in dict.fromkeys(charge.run for charge in own):
        mine = [charge for charge in own if charge.run == run]
        committed = sum(charge.sequence in state.committed for charge in mine)
        cost = epsilon([event for charge in mine for event in charge.events], delta).value
        # A coordinator could call one run by several names; all are shown.
        name = ", ".join(dict.fromkeys(charge.name for charge in mine if charge.name))
        runs.append(RunReport(run, name, committed, len(mine) - committed, cost))
    return AccountReport(
        account=account,
        unit=unit,
        ceiling=ceiling,
        spent=epsilon(state.spent(account, unit), delta),
        spent_against_colluders=epsilon(state.spent(account, unit, "colluders"), delta),
        spent_adaptively=_adaptively(state.spent(account, unit), ceiling),
        runs=tuple(runs),
    )


def _adaptively(spent: Sequence[Event], ceiling: Ceiling | None) -> float | None:
    if ceiling is None or math.isinf(ceiling.epsilon):
        return None
    return ceiling.adaptive(fold(spent), "sums")


def spending_of(path: Path) -> tuple[str, list[Carried]]:
    """Return a ledger's site and everything that was charged in it, for a new ledger to carry.

    Raises
    ------
    TamperedError, LedgerError
        As `verify_ledger`.
    """
    found = verify_ledger(path)
    state = read_state(path)
    covers = tuple(sorted(state.covered() | {found.public_key}))
    charges = state.charges("")
    carried: list[Carried] = []
    for account, unit in dict.fromkeys((charge.account, charge.unit) for charge in charges):
        parts = [one for one in charges if (one.account, one.unit) == (account, unit)]
        events = tuple(event for part in parts for event in part.events)
        alone = tuple(event for part in parts for event in part.colluder_events)
        runs = tuple(dict.fromkeys(run for part in parts for run in _runs(part)))
        carried.append(
            Carried(covers, str(found.head), unit, events, alone, account=account, runs=runs)
        )
    # One entry at least, so that an earlier ledger in which nothing was spent is covered.
    if not carried:
        carried.append(Carried(covers, str(found.head), "record", (), ()))
    return found.site, carried


def _runs(charge: Carried | Reservation) -> tuple[str, ...]:
    return charge.runs if isinstance(charge, Carried) else (charge.run,)


def export_ledger(path: Path, out: Path, force: bool = False) -> Head:
    """Write a ledger as JSON Lines, one entry a line, for auditors; return its head.

    `verify_ledger` reads the result as it reads the ledger itself. Record and person tags of
    ledgers of before are included: they are keyed, and say only which data sets share records.
    An earlier export that the new one begins with is replaced; nothing else is, unless
    ``force``, and a ledger never.

    Raises
    ------
    TamperedError
        If the ledger does not hold; nothing is exported then.
    ConfigError
        If ``out`` is something else already.
    FedllmError
        If ``out`` cannot be written.
    """
    head, content = checked_export(path)
    _check_place(out, content, force)
    with given_path():
        write_bytes(out, content)
    return head


def checked_export(path: Path, public_key: bytes | None = None) -> tuple[Head, bytes]:
    """Return a ledger's head, and what `export_ledger` writes of it.

    Raises
    ------
    TamperedError, NoLedgerError
        As `verify_ledger`.
    """
    head = verify_ledger(path, public_key).head
    return head, exported(path)


def _check_place(out: Path, content: bytes, force: bool) -> None:
    """See that an export replaces nothing that is not in it."""
    try:
        with out.open("rb") as stream:
            before = stream.read() if not force else stream.read(FIRST_PAGE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(
            f"could not write {out}: {error.strerror}", "choose another path"
        ) from None
    if before.startswith(SQLITE) or has_traces(before[:FIRST_PAGE]):
        raise ConfigError(f"{out} is a ledger or another database", "choose another path")
    if force or content.startswith(before):
        return
    if before.startswith(content):
        raise ConfigError(
            f"{out} is an export of this ledger with more entries than the ledger has now",
            "keep it: it shows what the ledger was before it was cut or restored from a copy",
        )
    raise ConfigError(
        f"{out} exists and is no earlier export of this ledger",
        "choose another path, or replace it with --force",
    )
