"""What a site spent before its ledger was begun: under keys that were lost, or a lost ledger.

A ledger belongs to a key and is lost with it; the records are the same. So a new ledger takes
over what was spent before, for all records alike, and a site that owes this takes part in no
round. What is owed, the roster says (earlier keys of the site's name) and the site's memory.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path

from fedllm.errors import RefusedError
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.memory import SiteMemory
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.accounting.events import Event, NonPrivate, Stated
from fedllm.privacy.ledger.audit import read_state, spending_of
from fedllm.privacy.ledger.charges import Carried
from fedllm.privacy.ledger.entries import Head, LedgerRefusal, TamperedError
from fedllm.privacy.ledger.fingerprints import Unit
from fedllm.privacy.ledger.ledger import Ledger

_REMEDY = (
    "the site takes over what was spent: fedllm ledger carry-over OLD_LEDGER --kit KIT, or, where "
    "no copy of it is left, with --epsilon and --delta"
)


def require_carried(files: SiteFiles, identity: Identity, roster: Roster) -> None:
    """Refuse to go on with a ledger that does not say what was spent before it.

    Raises
    ------
    RefusedError
        If the site had other keys before, or its ledger is gone although it has trained.
    TamperedError, LedgerError
        If the ledger cannot be read, or is an older copy than the one that the site remembers.
    """
    ledger, memory = files.ledger, SiteMemory(files.memory)
    owed = owed_keys(identity.name, roster)
    if not ledger.exists():
        if memory.used():
            raise RefusedError("this site has trained before, and its ledger is gone", _REMEDY)
        if owed:
            raise RefusedError(
                f"'{identity.name}' had other keys before, and its new ledger lacks what was "
                "spent under them",
                _REMEDY,
            )
        return
    head = memory.head()
    state = read_state(ledger, identity.public_bytes(), () if head is None else (head,))
    if state.statements and head is None:
        raise RefusedError(
            f"the site's memory of its ledger ({files.memory.name}) is gone: nothing tells whether "
            "the ledger is the newest",
            f"restore {files.memory.name} beside the ledger, or move the ledger away and take over "
            "what was spent: fedllm ledger carry-over OLD_LEDGER --kit KIT",
        )
    if not owed <= state.covered():
        raise RefusedError(
            f"'{identity.name}' had other keys before, and its ledger lacks what was spent under "
            "them",
            _REMEDY,
        )


def owed_keys(name: str, roster: Roster) -> set[str]:
    """Return the earlier public keys (hex) of a site."""
    return {key.hex() for key in roster.former.get(name, ())}


def carry_ledger(
    old: Path,
    files: SiteFiles,
    identity: Identity,
    roster: Roster,
    since: Statement | None = None,
) -> list[Carried]:
    """Take over all that an earlier ledger of this site, or an export of it, was charged.

    Parameters
    ----------
    since : Statement, optional
        What was spent at most after ``old`` was copied, where it is not the newest; is charged
        besides.

    Raises
    ------
    RefusedError
        If it is another site's, was taken over before, is the site's ledger of today, or lacks
        the entry that the site remembers and nothing is stated of what was spent since.
    TamperedError, LedgerError
        If the earlier ledger does not hold.
    """
    site, carried = spending_of(old)
    before = read_state(old)
    mine = owed_keys(identity.name, roster) | {identity.public_bytes().hex()}
    # The key that signed it: what it says of other keys is that key's word.
    if site != identity.name or before.public_key.hex() not in mine:
        raise RefusedError(
            f"{old} is not an earlier ledger of '{identity.name}'",
            "give the site's own, or an export of it",
        )
    if files.ledger.exists() and read_state(files.ledger).id == before.id:
        raise RefusedError(
            f"{old} is a copy of the ledger that lies at the site's place",
            f"move {files.ledger} away, and keep it; what was spent goes over to a new one",
        )
    if since is not None:
        carried.append(_stated(since, identity, roster))
    remembered = SiteMemory(files.memory).head()
    if remembered is not None and not _is_current(files.ledger, remembered):
        if since is None:
            _require_newest(old, remembered)
        if _is_empty(files.ledger) and since is None:
            # Begun by a carry-over that was cut off before the site remembered it.
            with suppress(LedgerRefusal):
                Ledger.open(files.ledger, identity.name, identity).carry(carried)
            _remember(files, identity)
            return carried
    _carry(carried, files, identity)
    return carried


def _require_newest(old: Path, remembered: Head) -> None:
    if not _holds(old, remembered):
        raise RefusedError(
            f"{old} is older than the ledger that this site had: it lacks entry "
            f"{remembered.sequence}, which the site remembers",
            "give the newest copy or export; or, with it, --epsilon and --delta for the most that "
            "was spent since it was made (what the policy allowed, if nobody knows)",
        )


@dataclass(frozen=True)
class Statement:
    """What a site states was spent at most, where no earlier ledger is left.

    Attributes
    ----------
    epsilon, delta : float
        An infinite epsilon says that nobody knows; nothing private can follow it.
    colluders_epsilon : float
        The same in the eyes of everyone else colluding.
    unit : {"record", "person"}
        What was protected.
    """

    epsilon: float
    delta: float
    colluders_epsilon: float
    unit: Unit


def carry_statement(
    said: Statement, files: SiteFiles, identity: Identity, roster: Roster
) -> list[Carried]:
    """Charge what a site states.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """
    carried = _stated(said, identity, roster)
    _carry([carried], files, identity)
    return [carried]


def _stated(said: Statement, identity: Identity, roster: Roster) -> Carried:
    def event(epsilon: float) -> Event:
        return NonPrivate() if epsilon == inf else Stated(epsilon, said.delta)

    covers = owed_keys(identity.name, roster) or {identity.public_bytes().hex()}
    seen, alone = (event(said.epsilon),), (event(max(said.epsilon, said.colluders_epsilon)),)
    return Carried(tuple(sorted(covers)), "", said.unit, seen, alone)


def _carry(carried: list[Carried], files: SiteFiles, identity: Identity) -> None:
    """Charge a new ledger, or the newest one there is."""
    if files.ledger.exists() and not _is_current(files.ledger, SiteMemory(files.memory).head()):
        # It would be gone on with, and nobody would remember what it forgot.
        raise RefusedError(
            f"{files.ledger} is not the ledger that this site remembers",
            "move it away, and keep it; what was spent goes over to a new one",
        )
    Ledger.open(files.ledger, identity.name, identity).carry(carried)
    _remember(files, identity)


def _remember(files: SiteFiles, identity: Identity) -> None:
    head = Ledger.open(files.ledger, identity.name, identity).head()
    SiteMemory(files.memory).begin_anew(head)


def _is_current(ledger: Path, remembered: Head | None) -> bool:
    """Whether a ledger is there that holds all that the site remembers."""
    if not ledger.exists():
        return False
    if remembered is None:
        return not read_state(ledger).statements
    return _holds(ledger, remembered)


def _is_empty(ledger: Path) -> bool:
    return ledger.exists() and not read_state(ledger).reservations


def _holds(path: Path, head: Head) -> bool:
    read_state(path)
    try:
        read_state(path, anchors=(head,))
    except TamperedError:
        return False
    return True
