"""Masks of a round from its signed statement, at a site and at the key authority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedllm.canonical import from_hex, signing_bytes
from fedllm.encryption.masks import (
    MaskScope,
    Reveal,
    SiteMasks,
    correction_for,
    require_agreement,
    survivor_statement,
)
from fedllm.encryption.plan import EncryptionPlan
from fedllm.errors import PeerError
from fedllm.federation.protocol.messages import RoundStatement
from fedllm.federation.protocol.statements import require
from fedllm.identity.keys import Identity, verify_signature
from fedllm.identity.roster import Roster


def mask_scope(statement: RoundStatement, plan: EncryptionPlan) -> MaskScope:
    """Return what the masks of one attempt of a round are bound to."""
    return MaskScope(statement.digest, statement.names, plan)


def site_masks(
    identity: Identity,
    ledger: str,
    statement: RoundStatement,
    plan: EncryptionPlan,
    recover: bool,
) -> SiteMasks:
    """Return a site's masks of one attempt of a round; the same whenever it is asked.

    A site derives its own mask's seed from its secret, so that it can take the mask off
    after a restart. That no mask serves two updates, the ledger sees to; under another ledger
    all masks are other ones.

    Parameters
    ----------
    identity : Identity
        The site's keys.
    ledger : str
        Id of the ledger that is charged for the attempt.
    statement : RoundStatement
        With checked signatures.
    recover : bool
        Whether the site adds a mask of its own, so that the round survives dropouts.
    """
    others = {m.name: hex_bytes(m.mask_key) for m in statement.cohort}
    require(identity.name in others, "this site is not in the cohort")
    del others[identity.name]
    purpose = signing_bytes("fedllm.own-mask.v4", statement.digest, ledger)
    return SiteMasks(
        mask_scope(statement, plan),
        identity.name,
        identity.mask_key(statement.run, ledger),
        others,
        min_survivors=statement.min_sites,
        own_mask=recover,
        own_seed=identity.derive(purpose) if recover else None,
    )


def check_settled(
    scope: MaskScope, survivors: Sequence[str], signatures: Sequence[str], roster: Roster
) -> Mapping[str, bytes]:
    """Check every survivor's signature of the same statement and return the statements.

    Raises
    ------
    PeerError
        If a signature is missing or does not fit.
    """
    require(len(signatures) == len(survivors), "a survivor's signature is missing")
    statement = survivor_statement(scope, survivors)
    for name, signature in zip(survivors, signatures, strict=True):
        verify_signature(roster.site_key(name), hex_bytes(signature), statement, name)
    return dict.fromkeys(survivors, statement)


def take_masks_off(
    slots: NDArray[np.uint64],
    scope: MaskScope,
    survivors: Sequence[str],
    signatures: Sequence[str],
    reveals: Sequence[bytes],
    roster: Roster,
) -> NDArray[np.uint64]:
    """Return an opened sum (S,) without the survivors' own masks and what dropouts left.

    ``reveals`` are `Reveal.to_bytes` of each survivor, already unsealed.

    Raises
    ------
    PeerError, RefusedError
        If the survivors do not all agree, or a reveal is missing or malformed.
    """
    require_agreement(scope, survivors, check_settled(scope, survivors, signatures, roster))
    parsed = [Reveal.from_bytes(blob, scope) for blob in reveals]
    correction = correction_for(scope, survivors, parsed)
    return (slots + correction) % np.uint64(scope.plan.plain_modulus)


def reveal_purpose(statement: RoundStatement, site: str) -> bytes:
    """Return what a site's sealed reveal is bound to: this attempt of the round, this site."""
    return signing_bytes("fedllm.reveal.v3", statement.digest, site)


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
