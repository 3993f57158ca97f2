"""Two opened CKKS sums give away the key, unless they were flooded and rounded."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fedllm.encryption.ciphertext_format import layout_of
from fedllm.encryption.pack import pack
from fedllm.encryption.plan import make_plan
from fedllm.encryption.residues import from_wire, wire_length
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey

_spec = importlib.util.spec_from_file_location(
    "ckks_key_recovery", Path(__file__).with_name("ckks_key_recovery.py")
)
attack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(attack)

# Two full ciphertexts; few sites where many are planned for, as an attacker would have it.
PLAN = make_plan("ckks", 16, 1024, 4095, False)
SITES = 3


def blocks(blob):
    step = wire_length(PLAN.ciphertext_primes, PLAN.poly_degree)
    for start in range(0, len(blob), step):
        view = memoryview(blob)[start : start + step]
        yield from_wire(view, PLAN.ciphertext_primes, PLAN.poly_degree)


@pytest.fixture(scope="module")
def scene():
    secret = SecretRoundKey.generate(PLAN)
    public = PublicRoundKey.from_bytes(PLAN, secret.public_context())
    random = np.random.default_rng(0)
    total, updates = EncryptedSum(PLAN, public), []
    for _ in range(SITES):
        levels = random.integers(0, PLAN.top_level + 1, PLAN.length, dtype=np.uint64)
        updates.append((levels, public.encrypt(pack(levels, PLAN))))
        total.add(updates[-1][1])
    ring = attack.Ring(PLAN.ciphertext_primes[0], PLAN.poly_degree)

    def natural(blob):
        return [(ring.natural(b[0, 0]), ring.natural(b[1, 0])) for b in blocks(blob)]

    blob = total.to_bytes()
    context = secret._context
    unprotected = [layout_of(PLAN).vector(context, block).decrypt() for block in blocks(blob)]
    protected = secret.decrypt_sum(blob).astype(np.float64).reshape(2, -1)
    return ring, natural, blob, updates, unprotected, protected


def attempt(scene, opened):
    """Recover the key from the opened sum and open the first site's update with it."""
    ring, natural, blob, updates, _, _ = scene
    scale = 2.0**PLAN.scale_bits
    secret = attack.recover_key(ring, natural(blob), opened, scale)
    levels, update = updates[0]
    slots = np.concatenate([attack.decode(ring, c, secret, scale) for c in natural(update)])
    return secret, levels, np.rint(slots[: PLAN.length])


def test_unprotected_sum_gives_away_the_key_and_every_update(scene):
    secret, levels, found = attempt(scene, scene[4])
    assert set(secret.tolist()) <= {-1, 0, 1}
    assert (found == levels).all()


def test_flooded_and_rounded_sum_does_not(scene):
    secret, levels, found = attempt(scene, scene[5])
    assert np.mean(np.abs(secret.astype(np.float64)) <= 1) < 0.01
    assert np.mean(found == levels) < 0.01
    # What it does give is the sum.
    expected = np.sum([u[0] for u in scene[3]], axis=0)
    assert np.corrcoef(scene[5].ravel()[: PLAN.length], expected)[0, 1] > 0.99
