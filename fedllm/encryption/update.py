"""The whole path of an update: the site's half and the key authority's half."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.key_process import SecretKeyProcess
from fedllm.encryption.lattice_mask import hide, reveal
from fedllm.encryption.pack import pack, unpack
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.residues import numbers_to_wire
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey, hidden_levels
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.randomness import RandomStream


def encrypt_update(
    vector: NDArray[np.float32],
    plan: EncryptionPlan,
    quantiser: Quantiser,
    public_key: PublicRoundKey,
    masks: NDArray[np.uint64] | None,
    random: RandomStream,
    statement: str = "",
) -> bytes:
    """Quantise, pack, mask and encrypt a site's update.

    Parameters
    ----------
    vector : float32 (P,)
        The update.
    plan : EncryptionPlan
        The round's plan.
    quantiser : Quantiser
        With the plan's bits.
    public_key : PublicRoundKey
        The round's key.
    masks : uint64 (S,), optional
        The site's masks, below ``plan.plain_modulus``; needed when the plan is masked.
    random : RandomStream
        Decides the stochastic rounding.
    statement : str
        Digest of the round's signed statement; needed when the plan is masked.

    Returns
    -------
    bytes
        ``plan.update_bytes`` of them.

    Raises
    ------
    RefusedError
        If masks or the statement are missing where the plan has masks, or masks are given where
        it has none.
    TrainingError
        If the vector is not finite or has another length.
    ConfigError
        If the quantiser has other bits than the plan.
    """
    _check_bits(plan, quantiser)
    return encrypt_levels(quantiser.quantise(vector, random), plan, public_key, masks, statement)


def encrypt_levels(
    levels: NDArray[np.uint64],
    plan: EncryptionPlan,
    public_key: PublicRoundKey,
    masks: NDArray[np.uint64] | None,
    statement: str = "",
) -> bytes:
    """Pack, mask and encrypt what is quantised already.

    Parameters
    ----------
    levels : uint64 (P,)
        From 0 to ``plan.top_level``.
    plan, public_key, masks, statement
        As of `encrypt_update`; the same result and `RefusedError`.

    Raises
    ------
    FedllmError
        If the levels do not fit the plan.
    """
    if (masks is not None) != plan.masked:
        raise RefusedError(
            "an update must be masked exactly when the round's plan says so",
            "use the masks of this round, or a plan without masks",
        )
    if plan.lattice is None:
        return public_key.encrypt(_masked(pack(levels, plan), masks, plan))
    _require_statement(statement)
    hidden, secret = hide(levels, plan, statement, RandomStream.secure())
    ciphertexts = public_key.encrypt(_masked(secret, masks, plan))
    return ciphertexts + numbers_to_wire(hidden, plan.lattice.modulus_bits)


def _masked(
    slots: NDArray[np.uint64], masks: NDArray[np.uint64] | None, plan: EncryptionPlan
) -> NDArray[np.uint64]:
    return slots if masks is None else (slots + masks) % np.uint64(plan.plain_modulus)


def clear_levels(update: bytes, plan: EncryptionPlan) -> NDArray[np.uint64]:
    """Return the levels (P,) of one update of a plan that hides nothing (``scheme = "none"``).

    Raises
    ------
    PeerError
        If it holds something else.
    """
    if plan.scheme != "none" or len(update) != plan.update_bytes:
        raise PeerError("the update is none that anyone could read")
    return unpack(np.frombuffer(update, dtype="<u8").astype(np.uint64), plan, 1)


def opened_levels(
    slots: NDArray[np.uint64],
    total: bytes,
    plan: EncryptionPlan,
    sites: int,
    statement: str = "",
) -> NDArray[np.uint64]:
    """Take a decrypted sum apart into summed levels.

    Parameters
    ----------
    slots : uint64 (S,)
        `SecretRoundKey.decrypt_sum`, without pairwise masks.
    total : bytes
        `EncryptedSum.to_bytes`, which holds what is under a lattice mask.
    plan : EncryptionPlan
        The round's plan.
    sites : int
        Updates in the sum.
    statement : str
        As at the sites.

    Returns
    -------
    uint64 (P,)
        Sums of levels.

    Raises
    ------
    PeerError
        If the sum does not hold exactly ``sites`` updates under this key and plan.
    RefusedError
        If the statement is missing where the plan has a lattice mask.
    """
    if plan.lattice is None:
        return unpack(slots, plan, sites)
    _require_statement(statement)
    return reveal(hidden_levels(plan, total), slots, plan, statement, sites)


def _require_statement(statement: str) -> None:
    if not statement:
        raise RefusedError(
            "an update is hidden only in a round that has a signed statement",
            "give the statement's digest, or use a plan without masks",
        )


def open_sum(
    blob: bytes,
    plan: EncryptionPlan,
    quantiser: Quantiser,
    secret_key: SecretRoundKey | SecretKeyProcess,
    sites: int,
    correction: NDArray[np.uint64] | None = None,
    statement: str = "",
) -> NDArray[np.float64]:
    """Decrypt a sum and return the sum of the updates.

    Parameters
    ----------
    blob : bytes
        `EncryptedSum.to_bytes`.
    plan : EncryptionPlan
        The round's plan.
    quantiser : Quantiser
        As at the sites.
    secret_key : SecretRoundKey
        The round's key; it opens nothing afterwards.
    sites : int
        Updates in the sum.
    correction : uint64 (S,), optional
        `correction_for` of the survivors' reveals, when sites added masks of their own.
    statement : str
        As at the sites.

    Returns
    -------
    float64 (P,)
        Sum of the updates.

    Raises
    ------
    PeerError
        If the sum does not hold exactly ``sites`` updates under this key and plan.
    RefusedError
        If the key has opened a sum before.
    ConfigError
        If the quantiser has other bits than the plan.
    """
    _check_bits(plan, quantiser)
    slots = _masked(secret_key.decrypt_sum(blob), correction, plan)
    levels = opened_levels(slots, blob, plan, sites, statement)
    return quantiser.dequantise_sum(levels, sites)


def _check_bits(plan: EncryptionPlan, quantiser: Quantiser) -> None:
    if quantiser.bits != plan.bits:
        raise ConfigError(
            f"a quantiser of {quantiser.bits} bits does not go with a plan of {plan.bits} bits",
            "take the number of bits from the plan",
        )
