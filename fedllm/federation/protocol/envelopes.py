"""A site's update in its signed envelope, on both sides."""

from __future__ import annotations

from fedllm.encryption.envelope import Expectation, open_envelope, sign_envelope
from fedllm.encryption.plan import EncryptionPlan
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.identity.keys import Identity, verify_signature
from fedllm.identity.roster import Roster


def _expectation(statement: RoundStatement, site: str, plan: EncryptionPlan) -> Expectation:
    return Expectation(
        run=statement.run,
        attempt=statement.attempt,
        site=site,
        purpose=statement.purpose,
        key=statement.key,
        plan=plan,
    )


def signed_update(
    payload: bytes, statement: RoundStatement, plan: EncryptionPlan, identity: Identity
) -> bytes:
    """Bind an encrypted update to its round, key and sender, and sign it."""
    return sign_envelope(payload, _expectation(statement, identity.name, plan), identity.sign)


def verified_update(
    blob: bytes, statement: RoundStatement, plan: EncryptionPlan, site: str, roster: Roster
) -> bytes:
    """Check an envelope and return the encrypted update.

    Raises
    ------
    PeerError
        If it is not from this site, for this round, key and plan.
    """

    def verify(name: str, message: bytes, signature: bytes) -> None:
        verify_signature(roster.site_key(name), signature, message, name)

    return open_envelope(blob, _expectation(statement, site, plan), verify)
