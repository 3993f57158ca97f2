"""The planner: nothing overflows, noise fits, security holds, and both ends agree."""

import hashlib
import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedllm.canonical import canonical_json
from fedllm.encryption.lattice import DEVIATION
from fedllm.encryption.plan import MODULUS_BITS_LIMIT, EncryptionPlan, make_plan, noise_bound
from fedllm.errors import ConfigError, PeerError
from fedllm.limits import MAX_SITES

REQUESTS = st.tuples(st.integers(4, 24), st.integers(1, MAX_SITES), st.integers(1, 6_000_000))


@given(REQUESTS, st.booleans())
# The largest sum lies just under a power of two, above the largest prime below it.
@example((24, 1, 1), False)
@example((16, 1, 1), False)
@settings(max_examples=60)
def test_bfv_plan_holds_the_largest_sum_in_every_field_slot_and_ciphertext(request_, masked):
    bits, sites, length = request_
    plan = make_plan("bfv", bits, sites, length, masked)
    assert masked or plan.lattice is None
    if plan.lattice:
        field, fields = 2 * plan.lattice.secret_bound, plan.slots * plan.fields_per_slot
        assert fields >= plan.lattice.degree < length
    else:
        field, fields = sites * (2**bits - 2), (plan.slots - 1) * plan.fields_per_slot
        assert fields >= length
    assert field < 2**plan.field_bits
    slot = sum(field << (plan.field_bits * i) for i in range(plan.fields_per_slot))
    assert slot < plan.plain_modulus <= 2**60
    assert plan.ciphertexts * plan.poly_degree >= plan.slots
    assert sum(plan.coeff_bits) <= MODULUS_BITS_LIMIT[plan.poly_degree]
    assert plan.plain_modulus % (2 * plan.poly_degree) == 1
    assert plan.plain_modulus not in plan.key_primes
    noise = noise_bound(plan.poly_degree, plan.ciphertexts, sites, plan.coeff_bits[-1])
    assert math.prod(plan.ciphertext_primes) / (2 * plan.plain_modulus) > noise


def test_up_to_1024_sites_the_plans_are_those_of_before():
    """Runs that are under way, and rounds that were kept, go by them."""
    found = hashlib.sha256()
    for scheme, masked in (("bfv", True), ("bfv", False), ("ckks", False), ("none", False)):
        for bits in (4, 8, 12, 13, 16, 20, 24):
            for sites in (1, 2, 3, 10, 16, 17, 100, 500, 1000, 1024):
                # Longer ones have a lattice mask since, if they are masked.
                for length in (1, 2048) if masked else (1, 10_000, 30_000, 1_000_000):
                    found.update(make_plan(scheme, bits, sites, length, masked).to_bytes())
    assert found.hexdigest() == "216f9d714104713b06093670400b73de5eef015133d4db70a515863048460144"


@pytest.mark.parametrize("scheme", ["bfv", "ckks", "none"])
def test_there_are_parameters_for_the_largest_cohort_at_every_number_of_bits(scheme):
    for bits in range(4, 25):
        for length in (1, 30_000, 1 << 28):
            plan = make_plan(scheme, bits, MAX_SITES, length, False)
            assert plan.max_sites * plan.top_level < 1 << plan.field_bits <= 1 << 60


@given(REQUESTS)
@settings(max_examples=60)
def test_lattice_mask_holds_the_largest_sum_in_every_coefficient(request_):
    bits, sites, length = request_
    lattice = make_plan("bfv", bits, sites, length, True).lattice
    if lattice is None:
        return
    assert lattice.radix == sites * (2**bits - 2) + 1
    packed = lattice.radix**lattice.levels_per_coefficient - 1
    # Errors on either side of the largest and of the smallest packed sum.
    assert lattice.step * packed + 2 * lattice.error_bound < 2**lattice.modulus_bits
    assert lattice.step > 2 * lattice.error_bound
    assert lattice.modulus_bits <= min(64, MODULUS_BITS_LIMIT[lattice.degree])
    assert lattice.levels_per_coefficient * lattice.coefficients > length
    for bound, count in (
        (lattice.error_bound, lattice.coefficients),
        (lattice.secret_bound, lattice.degree),
    ):
        assert 2 * count * math.exp(-(bound**2) / (2 * sites * DEVIATION**2)) < 2.0**-40


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


@pytest.mark.parametrize(
    ("sites", "limits"),
    [(10, (0.86, 0.79, 0.76)), (16, (0.91, 0.81, 0.79)), (100, (1.15, 0.96, 0.89))],
)
def test_bytes_on_the_wire_at_16_bits(sites, limits):
    for length, limit in zip((30_000, 100_000, 1_000_000), limits, strict=True):
        assert make_plan("bfv", 16, sites, length, True).expansion <= limit


@pytest.mark.parametrize(("bits", "sites"), [(16, 10), (8, 100), (24, 3)])
def test_a_lattice_mask_is_taken_where_it_takes_fewer_bytes(bits, sites):
    for length in (1, 2048):
        assert make_plan("bfv", bits, sites, length, True).lattice is None
    for length in (2049, 30_000, 3_000_000):
        masked, bare = (make_plan("bfv", bits, sites, length, m) for m in (True, False))
        assert (masked.lattice is not None) == (masked.update_bytes < bare.update_bytes)
        assert masked.update_bytes <= bare.update_bytes
    assert masked.lattice and bare.lattice is None


def test_a_masked_plan_of_before_lattice_masks_is_refused():
    values = json.loads(make_plan("bfv", 16, 10, 54_221, False).to_bytes()) | {"masked": True}
    with pytest.raises(PeerError, match="would not choose"):
        EncryptionPlan.from_bytes(canonical_json(values))


@pytest.mark.parametrize(
    "change",
    [
        {"coeff_bits": [40, 32, 27]},
        {"poly_degree": 4096},
        {"lattice": None},
        {"lattice": {"degree": 1024}},
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
        ("bfv", 16, MAX_SITES + 1, 10, True),
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
