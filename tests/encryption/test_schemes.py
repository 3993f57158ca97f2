"""Keys and sums: the same result as TenSEAL's own addition, and strict about everything."""

import pickle

import numpy as np
import pytest
import tenseal

from fedllm.encryption.ciphertext_format import layout_of
from fedllm.encryption.pack import unpack
from fedllm.encryption.plan import make_plan
from fedllm.encryption.residues import from_wire, to_wire
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.errors import FedllmError, PeerError, RefusedError
from fedllm.limits import MAX_SITES


def keys(plan):
    secret = SecretRoundKey.generate(plan)
    return secret, PublicRoundKey.from_bytes(plan, secret.public_context())


def random_slots(plan, seed=0):
    top = plan.plain_modulus or plan.top_level
    return np.random.default_rng(seed).integers(0, top, plan.slots, dtype=np.uint64)


@pytest.mark.parametrize(
    ("scheme", "bits", "sites"), [("bfv", 16, 10), ("bfv", 16, 100), ("ckks", 16, 10)]
)
def test_adding_residues_is_what_tenseal_does(scheme, bits, sites):
    plan = make_plan(scheme, bits, sites, 100, False)
    _, public = keys(plan)
    total = EncryptedSum(plan, public)
    layout, vectors = layout_of(plan), []
    for seed in range(5):
        blob = public.encrypt(random_slots(plan, seed))
        total.add(blob)
        residues = from_wire(memoryview(blob), plan.ciphertext_primes, plan.poly_degree)
        vectors.append(layout.vector(public._context, residues))
    native = vectors[0]
    for vector in vectors[1:]:
        native.add_(vector)
    assert total.to_bytes() == to_wire(layout.ciphertext_residues(native), plan.ciphertext_primes)


def test_wire_bytes_are_tenseals_own_ciphertext():
    plan = make_plan("bfv", 8, 4, 100, False)
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV,
        plan.poly_degree,
        plan.plain_modulus,
        list(plan.coeff_bits),
        n_threads=1,
    )
    values = list(range(plan.poly_degree))
    residues = layout_of(plan).ciphertext_residues(tenseal.bfv_vector(context, values))
    blob = to_wire(residues, plan.ciphertext_primes)
    again = from_wire(memoryview(blob), plan.ciphertext_primes, plan.poly_degree)
    assert layout_of(plan).vector(context.data, again).decrypt() == values


def test_sum_wraps_modulo_the_plaintext_modulus():
    plan = make_plan("bfv", 16, 10, 40_000, False)
    secret, public = keys(plan)
    total = EncryptedSum(plan, public)
    slots = [random_slots(plan, seed) for seed in range(10)]
    for part in slots:
        total.add(public.encrypt(part))
    expected = [sum(int(s[i]) for s in slots) % plan.plain_modulus for i in range(plan.slots)]
    assert secret.decrypt_sum(total.to_bytes()).tolist() == expected


@pytest.mark.parametrize(("bits", "sites"), [(4, 64), (16, 16), (24, 64)])
def test_largest_cohort_at_the_top_level_decrypts_exactly(bits, sites):
    plan = make_plan("bfv", bits, sites, 30, False)
    secret, public = keys(plan)
    total = EncryptedSum(plan, public)
    top = (1 << plan.field_bits * plan.fields_per_slot) - 1
    slots = np.full(plan.slots, min(top, plan.plain_modulus - 1) // sites, dtype=np.uint64)
    for _ in range(sites):
        total.add(public.encrypt(slots))
    assert (secret.decrypt_sum(total.to_bytes()) == slots * np.uint64(sites)).all()
    with pytest.raises(PeerError, match="and no more"):
        total.add(public.encrypt(slots))


@pytest.mark.parametrize(("bits", "fresh"), [(16, 1024), (24, 1024)])
def test_as_many_sites_as_a_sum_may_hold_decrypt_exactly(bits, fresh):
    """Each ciphertext counts several times: noisier than as many that are independent."""
    plan = make_plan("bfv", bits, MAX_SITES, 30, True)
    secret, public = keys(plan)
    total = EncryptedSum(plan, public)
    slots = np.full(plan.slots, plan.top_level, dtype=np.uint64)
    for place in range(1, plan.fields_per_slot):
        slots[:-1] |= np.uint64(plan.top_level << place * plan.field_bits)
    slots[-1] = 1
    for _ in range(fresh):
        total.add(public.encrypt(slots))
    primes = plan.ciphertext_primes
    residues = from_wire(memoryview(total.to_bytes()), primes, plan.poly_degree)
    moduli = np.array(primes, dtype=np.uint64)[None, :, None]
    whole = to_wire(residues * np.uint64(MAX_SITES // fresh) % moduli, primes)
    opened = unpack(secret.decrypt_sum(whole), plan, MAX_SITES)
    assert (opened == MAX_SITES * plan.top_level).all()


def test_same_slots_never_give_the_same_ciphertext():
    plan = make_plan("bfv", 8, 4, 10, False)
    _, public = keys(plan)
    assert public.encrypt(random_slots(plan)) != public.encrypt(random_slots(plan))


def test_key_of_another_round_gives_no_sum():
    # Slots of 60 bits: that garbage holds a right one by chance has a probability of 1e-14.
    plan = make_plan("bfv", 16, 16, 40_000, False)
    _, public = keys(plan)
    other, _ = keys(plan)
    total = EncryptedSum(plan, public)
    slots = np.zeros(plan.slots, np.uint64)
    total.add(public.encrypt(slots))
    assert (other.decrypt_sum(total.to_bytes()) != slots).all()


def test_secret_key_hides_and_does_not_travel():
    secret, public = keys(make_plan("bfv", 8, 4, 10, False))
    assert repr(secret) == "SecretRoundKey(<hidden>)"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert public._context.is_public() and not public._context.has_secret_key()


def test_wiped_key_opens_nothing_and_drops_its_context():
    plan = make_plan("bfv", 8, 4, 10, False)
    secret, public = keys(plan)
    secret.wipe()
    assert secret._context is None
    with pytest.raises(RefusedError):
        secret.public_context()
    with pytest.raises(RefusedError):
        secret.decrypt_sum(public.encrypt(random_slots(plan)))


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_context_that_holds_more_or_less_than_a_public_key_is_refused(scheme):
    plan = make_plan(scheme, 8, 4, 10, False)
    secret, _ = keys(plan)
    context = secret._context
    good = secret.public_context()
    first = plan.key_primes[0].to_bytes(8, "little")
    for blob in (
        context.serialize(True, True, False, False),
        context.serialize(True, False, False, False),
        b"",
        good[:-1],
        good + b"\0",
        bytes(len(good)),
        first[: (plan.key_primes[0].bit_length() + 7) // 8] + good[len(first) :],
    ):
        with pytest.raises(PeerError):
            PublicRoundKey.from_bytes(plan, blob)


def test_a_key_is_read_once_however_many_sites_of_a_process_are_sent_it():
    plan = make_plan("bfv", 8, 4, 10, False)
    blob = SecretRoundKey.generate(plan).public_context()
    key = PublicRoundKey.from_bytes(plan, blob)
    assert PublicRoundKey.from_bytes(plan, bytes(bytearray(blob))) is key
    # The same parameters for another vector, and another key of the same plan.
    other = make_plan("bfv", 8, 4, 11, False)
    assert other.coeff_bits == plan.coeff_bits
    assert PublicRoundKey.from_bytes(other, blob).plan == other
    fresh = SecretRoundKey.generate(plan).public_context()
    assert PublicRoundKey.from_bytes(plan, fresh).fingerprint != key.fingerprint
    for _ in range(2):
        with pytest.raises(PeerError):
            PublicRoundKey.from_bytes(plan, blob[:-1])


def test_key_of_another_plan_is_refused():
    plan, other = make_plan("bfv", 8, 4, 10, False), make_plan("bfv", 8, 1024, 10**6, False)
    secret, public = keys(plan)
    assert other.coeff_bits != plan.coeff_bits
    with pytest.raises(PeerError):
        PublicRoundKey.from_bytes(other, secret.public_context())
    with pytest.raises(FedllmError, match="another plan"):
        EncryptedSum(other, public)


def test_slots_that_do_not_fit_are_not_encrypted():
    plan = make_plan("bfv", 8, 4, 10, False)
    _, public = keys(plan)
    for slots in (
        np.zeros(plan.slots + 1, np.uint64),
        np.full(plan.slots, plan.plain_modulus, np.uint64),
    ):
        with pytest.raises(FedllmError, match="do not fit"):
            public.encrypt(slots)


def test_round_without_encryption_takes_no_key():
    plan = make_plan("none", 8, 4, 10, False)
    with pytest.raises(PeerError, match="without encryption"):
        PublicRoundKey.from_bytes(plan, b"key")
