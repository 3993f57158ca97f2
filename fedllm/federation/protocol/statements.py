"""Build and check the signed statements on which the parties of a round agree."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from fedllm.canonical import from_hex, read_object
from fedllm.errors import PeerError, RefusedError
from fedllm.federation.protocol.cohorts import CohortMember, cohort_digest, member_statement
from fedllm.federation.protocol.round_statement import ROUND_LABEL, RoundStatement, round_statement
from fedllm.federation.protocol.wire import parse_header
from fedllm.identity.keys import Identity, verify_signature
from fedllm.identity.roster import Roster

_UPDATE = "update fedllm, so that all parties run the same version"


def make_member(identity: Identity, ledger: str, run: str, units: int) -> CohortMember:
    """Return a site's entry in the cohorts of one run, signed by the site.

    ``ledger`` is the id of the site's ledger.
    """
    key = _mask_key(identity, ledger, run)
    signature = identity.sign(member_statement(run, identity.name, key, units)).hex()
    return CohortMember(name=identity.name, mask_key=key, units=units, signature=signature)


def require_own_key(member: CohortMember, identity: Identity, ledger: str, run: str) -> None:
    """Refuse a cohort in which a site has another key than under its ledger of today.

    A ledger that was begun anew does not know what the one before was charged, and masks of then
    must not serve again. ``member`` is the site's own entry, ``ledger`` the id of its ledger.

    Raises
    ------
    PeerError
        If the key is another.
    """
    require(
        member.mask_key == _mask_key(identity, ledger, run),
        "this site's entry in the cohort is not its own",
    )


def _mask_key(identity: Identity, ledger: str, run: str) -> str:
    return identity.mask_key(run, ledger).public_key().public_bytes_raw().hex()


def check_member(member: CohortMember, run: str, roster: Roster) -> None:
    """Check that an entry was signed by the site in the roster, for this run.

    Raises
    ------
    PeerError
        If not.
    """
    key = roster.site_key(member.name)
    try:
        from_hex(member.mask_key, 32)
        signature = from_hex(member.signature)
    except ValueError:
        raise PeerError(
            f"the mask key of '{member.name}' or its signature is not hexadecimal"
        ) from None
    try:
        statement = member_statement(run, member.name, member.mask_key, member.units)
        verify_signature(key, signature, statement, member.name)
    except PeerError as error:
        raise PeerError(f"{error.message}: its mask key", f"{error.remedy}; or {_UPDATE}") from None


def check_cohort(statement: RoundStatement, roster: Roster) -> None:
    """Check that a cohort is sorted, without repeats, large enough, and of sites in the roster.

    Raises
    ------
    PeerError
        If not.
    """
    names = list(statement.cohort)
    if names != sorted(set(names)):
        raise PeerError("the cohort repeats a site or is not in order")
    if not 1 <= statement.min_sites <= len(names):
        raise PeerError(
            f"a cohort of {len(names)} sites cannot give a sum of {statement.min_sites}"
        )
    if not statement.missing <= statement.neighbours < len(names):
        raise PeerError("the numbers of neighbours in a round do not fit its cohort")
    for name in names:
        roster.site_key(name)


def check_members(
    statement: RoundStatement, members: Sequence[CohortMember], roster: Roster
) -> None:
    """Check that these are the entries of a cohort, each signed by its site.

    Raises
    ------
    PeerError
        If not.
    """
    names = tuple(member.name for member in members)
    require(names == statement.cohort, "the entries are not those of the cohort")
    require(cohort_digest(members) == statement.members, "the cohort's digest is of other entries")
    check_keys(members)
    for member in members:
        check_member(member, statement.run, roster)


def check_keys(members: Sequence[CohortMember]) -> None:
    """Refuse entries of which two show the same mask key.

    Raises
    ------
    PeerError
        If two do.
    """
    if len({member.mask_key for member in members}) != len(members):
        raise PeerError("two sites of the cohort show the same mask key")


def read_statement(text: str, signature: str, roster: Roster) -> RoundStatement:
    """Read a round's statement and check the key authority's signature, and its cohort's names.

    Raises
    ------
    PeerError
        If a signature does not fit, or the statement is malformed.
    """
    try:
        raw = from_hex(signature)
    except ValueError:
        raise PeerError("the key authority's signature is not hexadecimal") from None
    statement = parse_statement(text)
    verify_signature(roster.authority, raw, round_statement(text), "the key authority")
    check_cohort(statement, roster)
    return statement


class StatementReader:
    """Reads statements as `read_statement` does, and the last one again without its signature.

    Every message of an attempt brings its statement.

    Parameters
    ----------
    roster : Roster
        The federation's parties, pinned.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._last: tuple[str, str, RoundStatement] | None = None

    def read(self, text: str, signature: str) -> RoundStatement:
        """Return a statement whose signature was checked; see `read_statement`.

        Known is what has the same text and the same signature, to the letter.
        """
        last = self._last
        if last is None or last[:2] != (text, signature):
            last = (text, signature, read_statement(text, signature, self._roster))
            self._last = last
        return last[2]


@lru_cache(maxsize=2)
def parse_statement(text: str) -> RoundStatement:
    """Read a round's statement, which nobody has to have signed yet.

    The last ones are known: thousands of simulated sites have one, in one process.

    Raises
    ------
    PeerError
        If it is malformed, or of another version.
    """
    try:
        kind = read_object(text).get("kind")
    except ValueError:
        kind = None
    if isinstance(kind, str) and kind != ROUND_LABEL:
        raise PeerError(
            f"a peer speaks of rounds as {kind[:40]!r}, and this is {ROUND_LABEL!r}", _UPDATE
        )
    return parse_header(RoundStatement, text)


def hex_bytes(text: str) -> bytes:
    """Read hexadecimal digits of a peer.

    Raises
    ------
    PeerError
        If they are none.
    """
    try:
        return from_hex(text)
    except ValueError:
        raise PeerError("a peer sent digits that are not hexadecimal") from None


def require(condition: bool, complaint: str) -> None:
    """Raise a `PeerError` unless ``condition`` holds."""
    if not condition:
        raise PeerError(complaint, "both sides must run the same version and configuration")


def require_cohort(statement: RoundStatement, minimum: int) -> None:
    """Refuse a round whose sum could be opened with fewer sites than ``minimum``.

    Raises
    ------
    RefusedError
        Names both numbers.
    """
    if statement.min_sites < minimum:
        raise RefusedError(
            f"a sum of {statement.min_sites} sites could be opened; the minimum here is {minimum}",
            "raise rounds.min_sites",
        )
