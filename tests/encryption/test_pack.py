"""Packing: sums of packed slots are packed sums, up to the very last level."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.encryption.pack import pack, unpack
from fedllm.encryption.plan import make_plan
from fedllm.errors import FedllmError, PeerError
from fedllm.limits import MAX_SITES

SCHEMES = st.sampled_from(["bfv", "none"])


@given(SCHEMES, st.integers(4, 24), st.integers(1, MAX_SITES), st.integers(1, 300), st.data())
@settings(max_examples=60)
def test_sum_of_slots_unpacks_to_the_sum_of_levels(scheme, bits, sites, length, data):
    plan = make_plan(scheme, bits, sites, length, False)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count = data.draw(st.integers(1, min(sites, 20)))
    levels = random.integers(0, plan.top_level + 1, (count, length), dtype=np.uint64)
    total = sum(pack(row, plan) for row in levels)
    assert (unpack(total, plan, count) == levels.sum(axis=0)).all()


@given(SCHEMES, st.integers(4, 24), st.integers(1, MAX_SITES))
@settings(max_examples=60)
def test_no_overflow_when_every_site_sends_the_top_level(scheme, bits, sites):
    plan = make_plan(scheme, bits, sites, 50, False)
    slots = pack(np.full(50, plan.top_level, np.uint64), plan)
    total = slots * np.uint64(sites)
    assert int(slots.max()) * sites < plan.plain_modulus
    assert (unpack(total, plan, sites) == sites * plan.top_level).all()


def test_level_above_the_top_or_wrong_length_is_refused():
    plan = make_plan("bfv", 8, 4, 10, False)
    for levels in (np.full(10, 255, np.uint64), np.zeros(11, np.uint64)):
        with pytest.raises(FedllmError, match="do not fit"):
            pack(levels, plan)


def damaged(plan, change):
    slots = pack(np.zeros(plan.length, np.uint64), plan)
    change(slots)
    return slots


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.__setitem__(-1, 2),
        lambda s: s.__setitem__(0, 255),
        lambda s: s.__setitem__(-2, 1 << 48),
        lambda s: s.__setitem__(0, 1 << 63),
    ],
    ids=["count", "level", "padding", "above"],
)
def test_slots_that_one_update_cannot_give_are_refused(change):
    plan = make_plan("bfv", 8, 16, 40_001, False)
    assert plan.fields_per_slot == 5 and plan.field_bits == 12
    with pytest.raises(PeerError, match="not the sum"):
        unpack(damaged(plan, change), plan, 1)
