"""What is hidden under lattice masks adds up exactly, and comes out for the right sum alone."""

import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.encryption import lattice_mask
from fedllm.encryption.lattice import sum_bound
from fedllm.encryption.lattice_mask import hide, reveal
from fedllm.encryption.plan import make_plan
from fedllm.errors import FedllmError, PeerError
from fedllm.randomness import RandomStream

STATEMENT = "5a" * 32
LENGTH = 2100


def added(hidden_levels, plan, statements=None):
    """Hide several vectors and add them up: the hidden levels, and the secrets' slots."""
    hidden = np.zeros(plan.lattice.coefficients, dtype=np.uint64)
    slots = np.zeros(plan.slots, dtype=np.uint64)
    for place, levels in enumerate(hidden_levels):
        statement = statements[place] if statements else STATEMENT
        more, secret = hide(levels, plan, statement, RandomStream.secure())
        assert more.max() < 2**plan.lattice.modulus_bits and secret.max() < plan.plain_modulus
        hidden, slots = hidden + more, (slots + secret) % np.uint64(plan.plain_modulus)
    return hidden & np.uint64(2**plan.lattice.modulus_bits - 1), slots


def extremes(plan, sites):
    """Levels at both ends."""
    top = np.full(plan.length, plan.top_level, dtype=np.uint64)
    mixed = top * (np.arange(plan.length) % 2).astype(np.uint64)
    return [top if site % 3 else mixed for site in range(sites)]


@given(
    st.integers(4, 24),
    st.integers(1, 1024),
    st.integers(1, 4),
    st.integers(2049, 9000),
    st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_sum_is_exact(bits, most, sites, length, seed):
    plan = make_plan("bfv", bits, most, length, True)
    if plan.lattice is None:
        return
    sites, random = min(sites, most), np.random.default_rng(seed)
    levels = [random.integers(0, plan.top_level + 1, length, dtype=np.uint64) for _ in range(sites)]
    opened = reveal(*added(levels, plan), plan, STATEMENT, sites)
    assert (opened == np.sum(levels, axis=0)).all()


@pytest.mark.parametrize(("bits", "sites"), [(16, 10), (16, 100), (4, 16), (24, 3), (8, 1)])
def test_sum_of_a_whole_cohort_at_its_extremes_is_exact(bits, sites):
    plan = make_plan("bfv", bits, sites, 9000, True)
    levels = extremes(plan, sites)
    opened = reveal(*added(levels, plan), plan, STATEMENT, sites)
    assert (opened == np.sum(levels, axis=0)).all()
    nothing = [np.zeros(plan.length, dtype=np.uint64)] * sites
    assert not reveal(*added(nothing, plan), plan, STATEMENT, sites).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_errors_and_secrets_at_their_bounds_are_taken_off_and_no_larger_ones(sign, monkeypatch):
    """All of the bound, on the largest sum and on the smallest, from one hostile draw."""
    plan = make_plan("bfv", 16, 10, LENGTH, True)
    lattice, draws = plan.lattice, []
    monkeypatch.setattr(lattice_mask, "short_gaussian", lambda random, count: draws.pop(0))
    for beyond, right in ((0, True), (1, False)):
        for level in (0, plan.top_level):
            levels = [np.full(LENGTH, level, dtype=np.uint64)] * 10
            for secret in (0, 0, 0, lattice.secret_bound * sign, *[0] * 6):
                draws.append(np.full(lattice.degree, secret))
                size = (lattice.error_bound + beyond) * sign if secret else 0
                draws.append(np.full(lattice.coefficients, size))
            hidden, slots = added(levels, plan)
            if right:
                assert (reveal(hidden, slots, plan, STATEMENT, 10) == 10 * level).all()
            else:
                with suppress(PeerError):
                    assert (reveal(hidden, slots, plan, STATEMENT, 10) != 10 * level).any()


def test_secrets_beyond_their_bound_are_refused(monkeypatch):
    plan = make_plan("bfv", 16, 10, LENGTH, True)
    hidden, slots = added([np.zeros(LENGTH, dtype=np.uint64)], plan)
    slots[0] = plan.lattice.secret_bound + 1
    with pytest.raises(PeerError, match="not the sum"):
        reveal(hidden, slots, plan, STATEMENT, 1)


@pytest.mark.parametrize("case", ["statement", "count", "plan", "missing", "one other", "mask"])
def test_a_sum_of_anything_else_is_refused(case):
    plan = make_plan("bfv", 16, 3, LENGTH, True)
    levels, statements = extremes(plan, 3), [STATEMENT] * 3
    if case == "one other":
        statements[1] = "5b" * 32
    hidden, slots = added(levels, plan, statements)
    asked = {"statement": STATEMENT, "sites": 3, "plan": plan}
    if case == "statement":
        asked["statement"] = "5b" * 32
    elif case == "count":
        asked["sites"] = 2
    elif case == "plan":
        asked["plan"] = make_plan("bfv", 16, 3, LENGTH - 1, True)
    elif case == "missing":
        _, secret = hide(levels[0], plan, STATEMENT, RandomStream.secure())
        slots = (slots + secret) % np.uint64(plan.plain_modulus)
    elif case == "mask":
        noise = RandomStream.secure().below(plan.plain_modulus, plan.slots)
        slots = (slots + noise) % np.uint64(plan.plain_modulus)
    with pytest.raises(PeerError, match=r"not the sum|agreed length"):
        reveal(hidden, slots, asked["plan"], asked["statement"], asked["sites"])


def test_levels_that_do_not_fit_are_not_hidden():
    plan = make_plan("bfv", 8, 3, LENGTH, True)
    for levels in (np.zeros(LENGTH - 1), np.full(LENGTH, plan.top_level + 1)):
        with pytest.raises(FedllmError, match="do not fit"):
            hide(levels.astype(np.uint64), plan, STATEMENT, RandomStream.secure())
    bare = make_plan("bfv", 8, 3, 20, True)
    with pytest.raises(FedllmError, match="no lattice mask"):
        hide(np.zeros(20, dtype=np.uint64), bare, STATEMENT, RandomStream.secure())


def test_bounds_hold_in_practice_too():
    """The largest of a million sums of ten draws; half of a bound is never reached by less."""
    draws = sum(
        lattice_mask.short_gaussian(RandomStream.seeded(2, site), 1_000_000) for site in range(10)
    )
    largest = np.abs(draws).max()
    assert 0.5 * sum_bound(10, 1_000_000) < largest < 0.75 * sum_bound(10, 1_000_000)
    assert sum_bound(10, 2048) == math.isqrt(20 * 49 * 53 * 6932 // 10_000) + 1
