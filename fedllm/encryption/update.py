"""The whole path of an update: the site's half and the key authority's half."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.key_process import SecretKeyProcess
from fedllm.encryption.pack import pack, unpack
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.errors import ConfigError, RefusedError
from fedllm.randomness import RandomStream


def encrypt_update(
    vector: NDArray[np.float32],
    plan: EncryptionPlan,
    quantiser: Quantiser,
    public_key: PublicRoundKey,
    masks: NDArray[np.uint64] | None,
    random: RandomStream,
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

    Returns
    -------
    bytes
        ``plan.update_bytes`` of them.

    Raises
    ------
    RefusedError
        If masks are missing where the plan has them, or given where it has none.
    TrainingError
        If the vector is not finite or has another length.
    ConfigError
        If the quantiser has other bits than the plan.
    """
    _check_bits(plan, quantiser)
    return encrypt_levels(quantiser.quantise(vector, random), plan, public_key, masks)


def encrypt_levels(
    levels: NDArray[np.uint64],
    plan: EncryptionPlan,
    public_key: PublicRoundKey,
    masks: NDArray[np.uint64] | None,
) -> bytes:
    """Pack, mask and encrypt what is quantised already.

    Parameters
    ----------
    levels : uint64 (P,)
        From 0 to ``plan.top_level``.
    plan, public_key, masks
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
    slots = pack(levels, plan)
    if masks is not None:
        slots = (slots + masks) % np.uint64(plan.plain_modulus)
    return public_key.encrypt(slots)


def open_sum(
    blob: bytes,
    plan: EncryptionPlan,
    quantiser: Quantiser,
    secret_key: SecretRoundKey | SecretKeyProcess,
    sites: int,
    correction: NDArray[np.uint64] | None = None,
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
    slots = secret_key.decrypt_sum(blob)
    if correction is not None:
        slots = (slots + correction) % np.uint64(plan.plain_modulus)
    return quantiser.dequantise_sum(unpack(slots, plan, sites), sites)


def _check_bits(plan: EncryptionPlan, quantiser: Quantiser) -> None:
    if quantiser.bits != plan.bits:
        raise ConfigError(
            f"a quantiser of {quantiser.bits} bits does not go with a plan of {plan.bits} bits",
            "take the number of bits from the plan",
        )
