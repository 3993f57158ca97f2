"""Build and check the signed statements on which the parties of a round agree."""

from __future__ import annotations

from fedllm.canonical import from_hex, read_object
from fedllm.errors import PeerError, RefusedError
from fedllm.federation.protocol.messages import (
    ROUND_LABEL,
    CohortMember,
    RoundStatement,
    member_statement,
    round_statement,
)
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


def own_member(statement: RoundStatement, name: str) -> CohortMember:
    """Return a site's own entry in a cohort.

    Raises
    ------
    PeerError
        If it is not in the cohort.
    """
    mine = [member for member in statement.cohort if member.name == name]
    require(bool(mine), "this site is not in the cohort")
    return mine[0]


def require_own_key(statement: RoundStatement, identity: Identity, ledger: str) -> None:
    """Refuse a cohort in which a site has another key than under its ledger of today.

    A ledger that was begun anew does not know what the one before was charged, and masks of then
    must not serve again. ``ledger`` is the id of the site's ledger.

    Raises
    ------
    PeerError
        If the key is another.
    """
    key = own_member(statement, identity.name).mask_key
    require(
        key == _mask_key(identity, ledger, statement.run),
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
    """Check that a cohort is sorted, without repeats, large enough, and signed by its sites.

    Raises
    ------
    PeerError
        If not.
    """
    names = list(statement.names)
    if names != sorted(set(names)):
        raise PeerError("the cohort repeats a site or is not in order")
    if len({member.mask_key for member in statement.cohort}) != len(names):
        raise PeerError("two sites of the cohort show the same mask key")
    if not 1 <= statement.min_sites <= len(names):
        raise PeerError(
            f"a cohort of {len(names)} sites cannot give a sum of {statement.min_sites}"
        )
    for member in statement.cohort:
        check_member(member, statement.run, roster)


def read_statement(text: str, signature: str, roster: Roster) -> RoundStatement:
    """Read a round's statement and check the key authority's signature and the cohort's.

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
    """Reads statements as `read_statement` does, and the last one again without its signatures.

    Every message of an attempt brings its statement, with the signatures of a whole cohort.

    Parameters
    ----------
    roster : Roster
        The federation's parties, pinned.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._last: tuple[str, str, RoundStatement] | None = None

    def read(self, text: str, signature: str) -> RoundStatement:
        """Return a statement whose signatures were checked; see `read_statement`.

        Known is what has the same text and the same signature, to the letter.
        """
        last = self._last
        if last is None or last[:2] != (text, signature):
            last = (text, signature, read_statement(text, signature, self._roster))
            self._last = last
        return last[2]


def parse_statement(text: str) -> RoundStatement:
    """Read a round's statement, which nobody has to have signed yet.

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
