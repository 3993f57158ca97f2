"""Several levels in one slot, with head-room so that the sum of all sites cannot overflow.

Batching quantised gradients under encryption follows Zhang et al. 2020 (BatchCrypt).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.plan import EncryptionPlan
from fedllm.errors import FedllmError, PeerError


def pack(levels: NDArray[np.uint64], plan: EncryptionPlan) -> NDArray[np.uint64]:
    """Pack levels into slots; the last slot counts the update as one.

    Parameters
    ----------
    levels : uint64 (P,)
        Quantised parameters, 0 to ``plan.top_level``.
    plan : EncryptionPlan
        Width and number of the fields.

    Returns
    -------
    uint64 (S,)
        Slots, each below ``plan.plain_modulus``.

    Raises
    ------
    FedllmError
        If there are not P levels or one of them is too large.
    """
    check_levels(levels, plan)
    columns = plan.slots - 1
    padded = np.zeros(plan.fields_per_slot * columns, dtype=np.uint64)
    padded[: plan.length] = levels
    slots = np.ones(plan.slots, dtype=np.uint64)
    slots[:-1] = 0
    for place, part in enumerate(padded.reshape(plan.fields_per_slot, columns)):
        slots[:-1] |= part << np.uint64(place * plan.field_bits)
    return slots


def check_levels(levels: NDArray[np.uint64], plan: EncryptionPlan) -> None:
    """Refuse levels (P,) that are not as many as the plan has, or one that is too large.

    Raises
    ------
    FedllmError
        If they do not fit.
    """
    if levels.shape != (plan.length,) or levels.max() > plan.top_level:
        raise FedllmError(
            "levels do not fit the encryption plan",
            "quantise with the number of bits and the length of the plan",
        )


def unpack(slots: NDArray[np.uint64], plan: EncryptionPlan, sites: int) -> NDArray[np.uint64]:
    """Take the summed slots of ``sites`` updates apart into summed levels.

    Parameters
    ----------
    slots : uint64 (S,)
        An opened sum.
    plan : EncryptionPlan
        Width and number of the fields.
    sites : int
        Updates that the sum should hold.

    Returns
    -------
    uint64 (P,)
        Sums of levels. Under CKKS they carry the flooding noise.

    Raises
    ------
    PeerError
        If the sum holds another number of updates, masks that did not cancel, or a value
        that ``sites`` updates cannot add up to.
    """
    if slots.shape != (plan.slots,) or not 1 <= sites <= plan.max_sites:
        raise PeerError("an opened sum does not have the agreed length or number of updates")
    if plan.scheme == "ckks":
        return slots[:-1]
    if slots[-1] != sites:
        raise wrong_sum()
    mask = np.uint64((1 << plan.field_bits) - 1)
    places = [np.uint64(place * plan.field_bits) for place in range(plan.fields_per_slot)]
    levels = np.concatenate([(slots[:-1] >> place) & mask for place in places])
    top = np.uint64(plan.field_bits * plan.fields_per_slot)
    if (
        levels.max() > sites * plan.top_level
        or levels[plan.length :].any()
        or (slots[:-1] >> top).any()
    ):
        raise wrong_sum()
    return levels[: plan.length]


def wrong_sum() -> PeerError:
    """Return the error of an opened sum that is not what it should be."""
    return PeerError(
        "an opened sum is not the sum of the updates it should hold",
        "a site used another key or plan, or masks of a dropped site were not corrected; "
        "repeat the round",
    )
