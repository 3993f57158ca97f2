"""The whole path: what the authority opens is the sum of what the sites encrypted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.encryption.plan import make_plan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.encryption.update import encrypt_levels, encrypt_update, open_sum
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.randomness import RandomStream


def summed(plan, vectors, quantiser, key=None):
    secret = key or SecretRoundKey.generate(plan)
    public = PublicRoundKey.from_bytes(plan, secret.public_context())
    total = EncryptedSum(plan, public)
    for index, vector in enumerate(vectors):
        random = RandomStream.seeded(1, index)
        total.add(encrypt_update(vector, plan, quantiser, public, None, random))
    return open_sum(total.to_bytes(), plan, quantiser, secret, len(vectors))


def vectors_of(sites, length, bound, seed=0):
    random = np.random.default_rng(seed)
    return [random.uniform(-bound, bound, length).astype(np.float32) for _ in range(sites)]


@pytest.mark.parametrize(
    ("scheme", "bits", "sites", "length"),
    [
        ("bfv", 16, 10, 20_000),
        ("bfv", 8, 16, 3),
        ("bfv", 4, 3, 50_000),
        ("bfv", 24, 1024, 1000),
        ("bfv", 16, 100, 5000),
        ("none", 16, 10, 5000),
    ],
)
def test_sum_is_exact_to_one_step_a_site(scheme, bits, sites, length):
    plan = make_plan(scheme, bits, sites, length, False)
    quantiser = Quantiser([(length, 0.5)], bits)
    vectors = vectors_of(min(sites, 10), length, 0.5)
    opened = summed(plan, vectors, quantiser)
    error = np.abs(opened - np.sum(vectors, axis=0, dtype=np.float64))
    assert (error < len(vectors) * quantiser.step).all()


@pytest.mark.parametrize(
    ("scheme", "length", "masked"),
    [("bfv", 5000, False), ("bfv", 2100, True), ("none", 30, False)],
    ids=["encrypted", "under a lattice mask", "in clear"],
)
def test_what_is_taken_out_of_a_sum_again_leaves_no_trace(scheme, length, masked):
    plan = make_plan(scheme, 16, 3, length, masked)
    assert (plan.lattice is not None) == masked
    public = PublicRoundKey.from_bytes(plan, SecretRoundKey.generate(plan).public_context())
    total, masks = EncryptedSum(plan, public), np.zeros(plan.slots, dtype=np.uint64)
    levels = RandomStream.seeded(1).below(plan.top_level, 3 * length).astype(np.uint64)
    parts = [
        encrypt_levels(part, plan, public, masks if masked else None, "00" * 32)
        for part in levels.reshape(3, length)
    ]
    total.add(parts[0])
    one = total.to_bytes()
    for part in parts[1:]:
        total.add(part)
    total.remove(parts[2])
    total.remove(parts[1])
    assert (total.to_bytes(), total.count) == (one, 1)


def test_encryption_changes_nothing_but_who_can_read():
    clear, encrypted = (make_plan(s, 12, 5, 9000, False) for s in ("none", "bfv"))
    quantiser = Quantiser([(9000, 1.0)], 12)
    vectors = vectors_of(5, 9000, 1.5)
    assert (summed(clear, vectors, quantiser) == summed(encrypted, vectors, quantiser)).all()


def test_key_opens_one_sum_only():
    plan = make_plan("bfv", 8, 4, 100, False)
    quantiser = Quantiser([(100, 1.0)], 8)
    key = SecretRoundKey.generate(plan)
    summed(plan, vectors_of(2, 100, 1.0), quantiser, key)
    with pytest.raises(RefusedError, match="already opened"):
        summed(plan, vectors_of(2, 100, 1.0), quantiser, key)


def test_claimed_number_of_updates_must_be_right():
    plan = make_plan("bfv", 8, 4, 100, False)
    quantiser = Quantiser([(100, 1.0)], 8)
    secret = SecretRoundKey.generate(plan)
    public = PublicRoundKey.from_bytes(plan, secret.public_context())
    total = EncryptedSum(plan, public)
    for index, vector in enumerate(vectors_of(2, 100, 1.0)):
        total.add(encrypt_update(vector, plan, quantiser, public, None, RandomStream.seeded(index)))
    with pytest.raises(PeerError, match="not the sum"):
        open_sum(total.to_bytes(), plan, quantiser, secret, 3)


@pytest.mark.parametrize(("masked", "masks"), [(True, None), (False, np.zeros(1, np.uint64))])
def test_masks_go_with_a_masked_plan(masked, masks):
    plan = make_plan("bfv", 8, 4, 100, masked)
    public = PublicRoundKey.from_bytes(plan, SecretRoundKey.generate(plan).public_context())
    vector = np.zeros(100, np.float32)
    with pytest.raises(RefusedError, match="masked exactly"):
        encrypt_update(
            vector, plan, Quantiser([(100, 1.0)], 8), public, masks, RandomStream.secure()
        )


def test_ckks_error_is_the_quantisation_and_the_flooding():
    plan = make_plan("ckks", 16, 10, 5000, False)
    quantiser = Quantiser([(5000, 0.5)], 16)
    vectors = vectors_of(10, 5000, 0.5)
    error = summed(plan, vectors, quantiser) - np.sum(vectors, axis=0, dtype=np.float64)
    assert 0 < np.abs(error).max() < 1e-2


@given(st.sampled_from([4, 8, 16, 24]), st.integers(1, 8), st.integers(1, 400), st.integers(0, 999))
@settings(max_examples=15)
def test_sum_of_any_vectors_is_within_a_step_a_site_of_the_clipped_ones(bits, sites, length, seed):
    random = np.random.default_rng(seed)
    bounds = random.uniform(1e-6, 1e3, length).astype(np.float32)
    vectors = [(random.normal(0, 1, length) * bounds).astype(np.float32) for _ in range(sites)]
    plan, quantiser = make_plan("bfv", bits, sites, length, False), Quantiser(bounds, bits)
    opened = summed(plan, vectors, quantiser)
    clipped = np.sum([np.clip(v.astype(np.float64), -bounds, bounds) for v in vectors], axis=0)
    assert (np.abs(opened - clipped) < sites * quantiser.step * (1 + 1e-6)).all()


def test_quantiser_of_other_bits_than_the_plan_is_refused():
    plan, quantiser = make_plan("bfv", 8, 4, 100, False), Quantiser([(100, 1.0)], 7)
    secret = SecretRoundKey.generate(plan)
    public = PublicRoundKey.from_bytes(plan, secret.public_context())
    vector = np.zeros(100, np.float32)
    with pytest.raises(ConfigError, match="7 bits"):
        encrypt_update(vector, plan, quantiser, public, None, RandomStream.secure())
    with pytest.raises(ConfigError, match="7 bits"):
        open_sum(bytes(plan.update_bytes), plan, quantiser, secret, 1)
