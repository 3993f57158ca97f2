"""The planner: nothing overflows, noise fits, security holds, and both ends agree."""

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedllm.encryption.plan import MODULUS_BITS_LIMIT, EncryptionPlan, make_plan, noise_bound
from fedllm.errors import ConfigError, PeerError

REQUESTS = st.tuples(st.integers(4, 24), st.integers(1, 1024), st.integers(1, 6_000_000))


@given(REQUESTS, st.booleans())
# The largest sum lies just under a power of two, above the largest prime below it.
@example((24, 1, 1), False)
@example((16, 1, 1), False)
@settings(max_examples=60)
def test_bfv_plan_holds_the_largest_sum_in_every_field_slot_and_ciphertext(request_, masked):
    bits, sites, length = request_
    plan = make_plan("bfv", bits, sites, length, masked)
    field = sites * (2**bits - 2)
    assert field < 2**plan.field_bits
    slot = sum(field << (plan.field_bits * i) for i in range(plan.fields_per_slot))
    assert slot < plan.plain_modulus <= 2**60
    assert (plan.slots - 1) * plan.fields_per_slot >= length
    assert plan.ciphertexts * plan.poly_degree >= plan.slots
    assert sum(plan.coeff_bits) <= MODULUS_BITS_LIMIT[plan.poly_degree]
    assert plan.plain_modulus % (2 * plan.poly_degree) == 1
    assert plan.plain_modulus not in plan.key_primes
    noise = noise_bound(plan.poly_degree, plan.ciphertexts, sites, plan.coeff_bits[-1])
    assert math.prod(plan.ciphertext_primes) / (2 * plan.plain_modulus) > noise


@given(REQUESTS)
@settings(max_examples=60)
def test_ckks_plan_leaves_room_for_the_sum(request_):
    plan = make_plan("ckks", *request_, False)
    assert plan.max_sites * plan.top_level * 2**plan.scale_bits < plan.ciphertext_primes[0] / 2
    assert sum(plan.coeff_bits) <= MODULUS_BITS_LIMIT[plan.poly_degree]


@given(REQUESTS, st.sampled_from([("bfv", True), ("bfv", False), ("ckks", False), ("none", False)]))
@settings(max_examples=60)
def test_plan_survives_its_own_bytes(request_, scheme):
    plan = make_plan(scheme[0], *request_, scheme[1])
    again = EncryptionPlan.from_bytes(plan.to_bytes())
    assert again == plan and again.fingerprint() == plan.fingerprint()


@pytest.mark.parametrize(("bits", "limit"), [(16, 1.55), (8, 0.95)])
@pytest.mark.parametrize("length", [1_000_000, 5_000_000])
def test_bytes_on_the_wire_for_16_sites(bits, limit, length):
    assert make_plan("bfv", bits, 16, length, True).expansion <= limit


@pytest.mark.parametrize(
    "change",
    [
        {"coeff_bits": [40, 32, 27]},
        {"poly_degree": 2048},
        {"plain_modulus": 1 << 40},
        {"security_bits": 0},
        {"slots": 1},
        {"length": True},
        {"length": 10**12},
        {"bits": 16.0},
        {"scheme": "rot13"},
        {"extra": 1},
    ],
)
def test_plan_that_the_planner_would_not_choose_is_refused(change):
    values = json.loads(make_plan("bfv", 16, 10, 10_000, True).to_bytes()) | change
    with pytest.raises(PeerError, match="would not choose"):
        EncryptionPlan.from_bytes(
            json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
        )


@pytest.mark.parametrize("blob", [b"", b"{}", b"[1]", b"null", b"\xff", b"[" * 4000, b"9" * 5000])
def test_bytes_that_are_no_plan_are_refused(blob):
    with pytest.raises(PeerError):
        EncryptionPlan.from_bytes(blob)


def test_spaces_in_a_plan_are_refused():
    with pytest.raises(PeerError):
        EncryptionPlan.from_bytes(make_plan("bfv", 8, 4, 10, True).to_bytes() + b" ")


@pytest.mark.parametrize(
    "request_",
    [
        ("bfv", 3, 10, 10, True),
        ("bfv", 25, 10, 10, True),
        ("bfv", 16, 0, 10, True),
        ("bfv", 16, 1025, 10, True),
        ("bfv", 16, 10, 0, True),
        ("ckks", 16, 10, 10, True),
        ("none", 16, 10, 10, True),
        ("aes", 16, 10, 10, True),
    ],
)
def test_impossible_request_is_refused(request_):
    with pytest.raises(ConfigError):
        make_plan(*request_)


def test_every_property_of_a_plan_is_in_its_fingerprint():
    plans = [
        make_plan(*request)
        for request in [
            ("bfv", 16, 10, 1000, True),
            ("bfv", 16, 10, 1000, False),
            ("bfv", 16, 10, 1001, True),
            ("bfv", 16, 11, 1000, True),
            ("bfv", 15, 10, 1000, True),
            ("ckks", 16, 10, 1000, False),
        ]
    ]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)
