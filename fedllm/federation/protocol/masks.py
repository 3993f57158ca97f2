"""Masks of a round from its signed statement, at a site and at the key authority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedllm.canonical import sha256_hex, signing_bytes
from fedllm.encryption.masks import SiteMasks, correction_for
from fedllm.encryption.pairs import MaskKey, PairSecrets
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.survivors import MaskScope, require_agreement, survivor_statement
from fedllm.federation.protocol.neighbours import Around, graph_of
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import hex_bytes
from fedllm.identity.keys import Identity, verify_signature
from fedllm.identity.roster import Roster


def mask_scope(statement: RoundStatement, plan: EncryptionPlan) -> MaskScope:
    """Return what the masks of one attempt of a round are bound to."""
    return MaskScope(statement.digest, statement.cohort, plan, graph_of(statement))


def site_masks(
    identity: Identity,
    ledger: str,
    statement: RoundStatement,
    around: Around,
    plan: EncryptionPlan,
    recover: bool,
    pairs: PairSecrets | None = None,
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
        With a checked signature.
    around : Around
        The site's neighbourhood in the round's cohort.
    recover : bool
        Whether the site adds a mask of its own, so that the round survives dropouts.
    pairs : PairSecrets, optional
        What `pair_secrets` returned for the same.
    """
    purpose = signing_bytes("fedllm.own-mask.v4", statement.digest, ledger)
    return SiteMasks(
        mask_scope(statement, plan),
        identity.name,
        identity.mask_key(statement.run, ledger),
        around.mask_keys,
        min_survivors=statement.min_sites,
        own_mask=recover,
        own_seed=identity.derive(purpose) if recover else None,
        drawn=around.drawn,
        pairs=pairs or pair_secrets(identity, ledger, statement, around, plan),
    )


def pair_secrets(
    identity: Identity,
    ledger: str,
    statement: RoundStatement,
    around: Around,
    plan: EncryptionPlan,
    key: MaskKey | None = None,
) -> PairSecrets:
    """Return what a site has in common with each other one in one attempt; see `site_masks`.

    ``key`` is the site's mask key of the run, where it was made before.
    """
    own = key or MaskKey(identity.mask_key(statement.run, ledger))
    return PairSecrets(mask_scope(statement, plan), identity.name, own, around.mask_keys)


def escrow_key(identity: Identity, ledger: str, statement: RoundStatement, words: bytes) -> bytes:
    """Return the key under which a site leaves what it would reveal for one sum, 32 bytes.

    ``words`` are what it signs of the survivors.
    """
    return identity.derive(
        signing_bytes("fedllm.escrow.v1", statement.digest, ledger, sha256_hex(words))
    )


def check_settled(
    scope: MaskScope, survivors: Sequence[str], signatures: Mapping[str, str], roster: Roster
) -> Mapping[str, bytes]:
    """Check signatures of the statement on the survivors and return the statements, by name.

    Raises
    ------
    PeerError
        If a signature does not fit.
    """
    statement = survivor_statement(scope, survivors)
    for name, signature in signatures.items():
        verify_signature(roster.site_key(name), hex_bytes(signature), statement, name)
    return dict.fromkeys(signatures, statement)


def take_masks_off(
    slots: NDArray[np.uint64],
    scope: MaskScope,
    survivors: Sequence[str],
    signatures: Mapping[str, str],
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
    statements = check_settled(scope, survivors, signatures, roster)
    require_agreement(scope, survivors, statements, survivors)
    parsed = [Reveal.from_bytes(blob, scope) for blob in reveals]
    correction = correction_for(scope, survivors, parsed)
    return (slots + correction) % np.uint64(scope.plan.plain_modulus)


def reveal_purpose(statement: RoundStatement, site: str) -> bytes:
    """Return what a site's sealed reveal is bound to: this attempt of the round, this site."""
    return signing_bytes("fedllm.reveal.v3", statement.digest, site)
