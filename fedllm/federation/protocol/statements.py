"""Build and check the signed statements on which the parties of a round agree."""

from __future__ import annotations

from fedllm.errors import PeerError, RefusedError
from fedllm.federation.protocol.messages import Member, RoundStatement, mask_key_statement
from fedllm.federation.protocol.wire import parse_header
from fedllm.identity.keys import Identity, verify_signature
from fedllm.identity.roster import Roster


def make_member(identity: Identity, run: str) -> Member:
    """Return a site's entry in the cohorts of one run, signed by the site."""
    key = identity.mask_key(run).public_key().public_bytes_raw().hex()
    signature = identity.sign(mask_key_statement(run, identity.name, key)).hex()
    return Member(name=identity.name, mask_key=key, signature=signature)


def check_member(member: Member, run: str, roster: Roster) -> None:
    """Check that a mask key was signed by the site in the roster, for this run.

    Raises
    ------
    PeerError
        If not.
    """
    statement = mask_key_statement(run, member.name, member.mask_key)
    try:
        signature = bytes.fromhex(member.signature)
    except ValueError:
        raise PeerError(f"the signature of '{member.name}' is not hexadecimal") from None
    verify_signature(roster.site_key(member.name), signature, statement, member.name)


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
        raw = bytes.fromhex(signature)
    except ValueError:
        raise PeerError("the key authority's signature is not hexadecimal") from None
    verify_signature(roster.authority, raw, text.encode(), "the key authority")
    statement = parse_header(RoundStatement, text)
    check_cohort(statement, roster)
    return statement


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
