"""Hide packed levels under a lattice mask, and take the sum of the masks off."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedllm.canonical import sha256, signing_bytes
from fedllm.encryption.lattice import LatticeMask
from fedllm.encryption.pack import check_levels, wrong_sum
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.ring import multiply, public_elements
from fedllm.encryption.short_gaussian import short_gaussian
from fedllm.errors import FedllmError, PeerError
from fedllm.randomness import RandomStream

# Ring elements that are worked on at once, for the sake of memory. All parties must have the same:
# each block expands a stream of its own.
_BLOCK = 64


def hide(
    levels: NDArray[np.uint64], plan: EncryptionPlan, statement: str, random: RandomStream
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hide levels under a fresh secret.

    Parameters
    ----------
    levels : uint64 (P,)
        Quantised parameters, 0 to ``plan.top_level``.
    plan : EncryptionPlan
        With a lattice mask.
    statement : str
        Digest of all that the parties of the sum agree on; the public part of the mask derives
        from it, so that nobody chooses it.
    random : RandomStream
        ``RandomStream.secure()`` outside tests. Drawing the same secret for two vectors gives
        away their difference.

    Returns
    -------
    hidden : uint64 (coefficients,)
        The levels under the mask, below the modulus. Worth nothing without the secret.
    slots : uint64 (S,)
        The secret, each slot below ``plan.plain_modulus``: to be masked and encrypted.

    Raises
    ------
    FedllmError
        If there are not P levels or one of them is too large.
    """
    lattice = _lattice(plan)
    check_levels(levels, plan)
    secret = short_gaussian(random, lattice.degree)
    hidden = _masks(secret, plan, statement)
    hidden += short_gaussian(random, lattice.coefficients).view(np.uint64)
    hidden += _to_coefficients(levels, lattice) * np.uint64(lattice.step)
    return hidden & _below_modulus(lattice), _to_slots(secret, plan)


def reveal(
    hidden: NDArray[np.uint64],
    slots: NDArray[np.uint64],
    plan: EncryptionPlan,
    statement: str,
    sites: int,
) -> NDArray[np.uint64]:
    """Return the sum of levels from the sums of what `hide` returned at each site.

    Parameters
    ----------
    hidden : uint64 (coefficients,)
        Sum of the hidden levels modulo ``2**modulus_bits``.
    slots : uint64 (S,)
        Sum of the secrets modulo ``plan.plain_modulus``, without pairwise masks.
    plan : EncryptionPlan
        With a lattice mask.
    statement : str
        As at the sites.
    sites : int
        Updates that the sum should hold.

    Returns
    -------
    uint64 (P,)
        Sums of levels.

    Raises
    ------
    PeerError
        If the sum holds another number of updates, masks that did not cancel, or a value
        that ``sites`` updates cannot add up to.
    """
    lattice = _lattice(plan)
    right_shape = hidden.shape == (lattice.coefficients,) and slots.shape == (plan.slots,)
    if not right_shape or not 1 <= sites <= plan.max_sites:
        raise PeerError("an opened sum does not have the agreed length or number of updates")
    rest = hidden - _masks(_from_slots(slots, plan), plan, statement)
    rest += np.uint64(lattice.error_bound)
    rest &= _below_modulus(lattice)
    # The errors' sum, shifted to be positive, is what the division leaves over.
    levels = _from_coefficients(rest // np.uint64(lattice.step), lattice)
    if (
        levels[plan.length] != sites
        or levels[: plan.length].max() > sites * plan.top_level
        or levels[plan.length + 1 :].any()
    ):
        raise wrong_sum()
    return levels[: plan.length]


def _lattice(plan: EncryptionPlan) -> LatticeMask:
    if plan.lattice is None:
        raise FedllmError("the encryption plan has no lattice mask", "use the plan of the round")
    return plan.lattice


def _below_modulus(lattice: LatticeMask) -> np.uint64:
    return np.uint64((1 << lattice.modulus_bits) - 1)


def _masks(secret: NDArray[np.int64], plan: EncryptionPlan, statement: str) -> NDArray[np.uint64]:
    """Return ``a`` times a secret or sum of secrets, uint64 (coefficients,), modulo ``2**64``."""
    lattice = _lattice(plan)
    seed = sha256(signing_bytes("fedllm.lattice-mask.v1", statement, plan.fingerprint()))
    blocks = _blocks(-(-lattice.coefficients // lattice.degree))
    products = [
        multiply(public_elements(seed, block, count, lattice.degree), secret)
        for block, count in enumerate(blocks)
    ]
    return np.concatenate(products).ravel()[: lattice.coefficients].copy()


def _blocks(elements: int) -> Iterator[int]:
    for start in range(0, elements, _BLOCK):
        yield min(_BLOCK, elements - start)


def _to_coefficients(levels: NDArray[np.uint64], lattice: LatticeMask) -> NDArray[np.uint64]:
    """Write levels, and 1 for the update that they are, as digits of coefficients."""
    digits = np.zeros(lattice.levels_per_coefficient * lattice.coefficients, dtype=np.uint64)
    digits[: len(levels)] = levels
    digits[len(levels)] = 1
    parts = digits.reshape(lattice.levels_per_coefficient, lattice.coefficients)
    packed = parts[-1].copy()
    for part in parts[-2::-1]:
        packed *= np.uint64(lattice.radix)
        packed += part
    return packed


def _from_coefficients(packed: NDArray[np.uint64], lattice: LatticeMask) -> NDArray[np.uint64]:
    digits = []
    for _ in range(lattice.levels_per_coefficient):
        packed, digit = np.divmod(packed, np.uint64(lattice.radix))
        digits.append(digit)
    if packed.any():
        raise wrong_sum()
    return np.concatenate(digits)


def _to_slots(secret: NDArray[np.int64], plan: EncryptionPlan) -> NDArray[np.uint64]:
    """Pack a secret into slots: fields of signed numbers, added up modulo the plain modulus."""
    fields = np.zeros((plan.fields_per_slot, plan.slots), dtype=np.int64)
    fields.ravel()[: len(secret)] = secret
    slots = sum(part << (place * plan.field_bits) for place, part in enumerate(fields))
    return np.mod(slots, plan.plain_modulus).astype(np.uint64)


def _from_slots(slots: NDArray[np.uint64], plan: EncryptionPlan) -> NDArray[np.int64]:
    lattice = _lattice(plan)
    # All fields moved up by half of their range are positive, and do not carry.
    half = 1 << (plan.field_bits - 1)
    up = sum(half << (place * plan.field_bits) for place in range(plan.fields_per_slot))
    moved = (slots + np.uint64(up)) % np.uint64(plan.plain_modulus)
    if (moved >> np.uint64(plan.fields_per_slot * plan.field_bits)).any():
        raise wrong_sum()
    mask = np.uint64((1 << plan.field_bits) - 1)
    parts = [
        (moved >> np.uint64(place * plan.field_bits)) & mask
        for place in range(plan.fields_per_slot)
    ]
    fields = np.concatenate(parts).astype(np.int64) - half
    if np.abs(fields).max() > lattice.secret_bound or fields[lattice.degree :].any():
        raise wrong_sum()
    return fields[: lattice.degree]
