"""Flooding: enough noise to hide the error of decryption, and no more than that."""

import numpy as np
import pytest

from fedllm.encryption.ciphertext_format import layout_of
from fedllm.encryption.flooding import flood_and_round, flooding_deviation
from fedllm.encryption.plan import make_plan
from fedllm.encryption.residues import from_wire, wire_length
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.randomness import RandomStream


@pytest.mark.parametrize("sites", [2, 10])
def test_noise_exceeds_the_measured_error_by_the_statistical_security(sites):
    plan = make_plan("ckks", 16, sites, 2000, False)
    secret = SecretRoundKey.generate(plan)
    public = PublicRoundKey.from_bytes(plan, secret.public_context())
    total = EncryptedSum(plan, public)
    slots = np.full(plan.slots, plan.top_level, np.uint64)
    for _ in range(sites):
        total.add(public.encrypt(slots))
    blob = memoryview(total.to_bytes())
    assert len(blob) == wire_length(plan.ciphertext_primes, plan.poly_degree)
    residues = from_wire(blob, plan.ciphertext_primes, plan.poly_degree)
    opened = np.array(layout_of(plan).vector(secret._context, residues).decrypt())
    error = np.linalg.norm(opened[: plan.slots] - sites * float(plan.top_level))
    deviation = flooding_deviation(plan)
    assert 12**0.5 * 2**20 * error < deviation < 20 * 12**0.5 * 2**20 * error


def test_result_is_whole_levels_in_range_with_the_stated_noise():
    plan = make_plan("ckks", 16, 10, 50_000, False)
    values = np.full(plan.slots, 300_000.0)
    levels = flood_and_round(values, plan, RandomStream.seeded(1))
    assert levels.dtype == np.uint64
    noise = levels.astype(float) - values
    assert abs(noise.mean()) < 5 * noise.std() / len(noise) ** 0.5
    spread = np.std(noise)
    assert abs(spread / np.hypot(flooding_deviation(plan), 12**-0.5) - 1) < 0.03
    edges = flood_and_round(np.array([-1e9, 1e9]), plan, RandomStream.secure())
    assert edges.tolist() == [0, plan.max_sites * plan.top_level]
