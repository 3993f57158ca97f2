"""Vectors under lattice masks: what whoever holds them may compute, and what it gives.

An attack that a fault would let through is run against a program with the fault too.
"""

import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats
from support.federation import build, plain_means, quantisation_step, small_config

from fedllm.encryption import lattice_mask, update
from fedllm.encryption.lattice import DEVIATION
from fedllm.encryption.lattice_mask import _from_slots, _masks, _to_coefficients, hide, reveal
from fedllm.encryption.masks import SiteMasks, correction_for
from fedllm.encryption.plan import MODULUS_BITS_LIMIT, make_plan
from fedllm.encryption.residues import numbers_to_wire
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.encryption.survivors import MaskScope
from fedllm.encryption.update import encrypt_levels, opened_levels
from fedllm.errors import PeerError, RefusedError
from fedllm.randomness import RandomStream

STATEMENT, OTHER = "a1" * 32, "b2" * 32
COUNT, LENGTH = 5, 9000
NAMES = tuple(f"site-{i}" for i in range(COUNT))
PLAN = make_plan("bfv", 16, COUNT, LENGTH, True)
LATTICE = PLAN.lattice
MODULUS = 2.0**LATTICE.modulus_bits
# One in so many right programs fails one of these tests.
UNLIKELY = 1e-9


def levels_of(seed):
    """Levels that are far from uniform, as real ones are."""
    return np.random.default_rng(seed).integers(32_000, 33_500, LENGTH).astype(np.uint64)


def hidden_of(levels, statement=STATEMENT, random=None):
    return hide(levels, PLAN, statement, random or RandomStream.secure())


def looks_uniform(values):
    """Whether numbers below the modulus look uniform, in their upper and lower bits."""
    values = values & np.uint64(2**LATTICE.modulus_bits - 1)
    low = np.bincount((values % np.uint64(64)).astype(int), minlength=64)
    upper = stats.kstest(values / MODULUS, "uniform").pvalue
    lag = stats.pearsonr(values[:-1] / MODULUS, values[1:] / MODULUS).pvalue
    return min(upper, stats.chisquare(low).pvalue, lag) > UNLIKELY


def errors_of(levels, hidden, slots, statement=STATEMENT):
    """What is left when levels and secret are known: the errors, as signed numbers."""
    rest = hidden - _masks(_from_slots(slots, PLAN), PLAN, statement)
    rest -= _to_coefficients(levels, LATTICE) * np.uint64(LATTICE.step)
    shift = np.uint64(64 - LATTICE.modulus_bits)
    return (rest << shift).view(np.int64) >> np.int64(shift)


def is_wide(values):
    """Whether numbers are discrete Gaussians of the right width."""
    fits = abs(values.std() / DEVIATION - 1) < 6 / (2 * len(values)) ** 0.5
    return fits and abs(values.mean()) < 6 * DEVIATION / len(values) ** 0.5


# --- one vector -----------------------------------------------------------------------------------


def test_a_hidden_vector_looks_uniform_and_the_same_one_is_another_each_time():
    levels = levels_of(1)
    first, second = (hidden_of(levels)[0] for _ in range(2))
    assert not looks_uniform(_to_coefficients(levels, LATTICE) * np.uint64(LATTICE.step))
    assert looks_uniform(first) and looks_uniform(second) and looks_uniform(first - second)


def test_a_secret_that_serves_twice_would_give_the_difference_away(monkeypatch):
    """Two attempts of one site, with the fault: a secret that derives from the site's keys."""
    draw, kept = lattice_mask.short_gaussian, np.random.default_rng(1).integers(-9, 9, 2048)
    monkeypatch.setattr(
        lattice_mask,
        "short_gaussian",
        lambda random, n: kept if n == LATTICE.degree else draw(random, n),
    )
    difference = hidden_of(levels_of(1))[0] - hidden_of(levels_of(1))[0]
    assert not looks_uniform(difference)


def test_secret_and_error_of_every_update_are_of_the_width_that_the_proof_asks_for():
    levels, secrets, errors = levels_of(1), [], []
    for _ in range(4):
        hidden, slots = hidden_of(levels)
        secrets.append(_from_slots(slots, PLAN))
        errors.append(errors_of(levels, hidden, slots))
    assert is_wide(np.concatenate(secrets)) and is_wide(np.concatenate(errors))
    # None of it serves twice, in a vector or in two.
    for drawn in (secrets, errors):
        assert abs(np.corrcoef(drawn)[np.triu_indices(4, 1)]).max() < 0.15
    assert abs(np.corrcoef(errors[0][:2048], errors[0][2048:4096])[0, 1]) < 0.15
    assert abs(np.corrcoef(errors[0][:2048], secrets[0])[0, 1]) < 0.15


def test_half_of_the_width_is_above_that_of_the_published_tables():
    """Who knows the sums over two honest sites is left with half (Kim et al. 2023)."""
    assert DEVIATION / 2 > 3.2
    # The smoothing condition of their theorem: this width is above sqrt(2) times the smoothing
    # parameter of all the integers that a vector can have, for 2**-100.
    numbers = 2**28 + 4096
    smoothing = (np.log(2 * numbers * (1 + 2.0**100)) / np.pi) ** 0.5 / (2 * np.pi) ** 0.5
    assert 2**0.5 * smoothing < DEVIATION / 2
    for bits, sites, length in ((16, 10, 10**6), (16, 100, 10**6), (24, 1024, 10**4)):
        lattice = make_plan("bfv", bits, sites, length, True).lattice
        assert lattice.modulus_bits <= MODULUS_BITS_LIMIT[lattice.degree] <= 106


# --- the public part ------------------------------------------------------------------------------


def test_the_public_part_is_of_one_statement_and_plan():
    secret = np.zeros(LATTICE.degree, dtype=np.int64)
    secret[0] = 1
    here = _masks(secret, PLAN, STATEMENT)
    other_plan = make_plan("bfv", 16, COUNT + 1, LENGTH, True)
    there = [_masks(secret, PLAN, OTHER), _masks(secret, other_plan, STATEMENT)[: len(here)]]
    assert looks_uniform(here)
    for public in there:
        assert not (public == here).any() and looks_uniform(public - here)


def test_no_two_elements_of_the_public_part_are_the_same(monkeypatch):
    monkeypatch.setattr(lattice_mask, "_BLOCK", 1)
    secret = np.zeros(LATTICE.degree, dtype=np.int64)
    secret[0] = 1
    public = _masks(secret, PLAN, STATEMENT)[: 2 * LATTICE.degree].reshape(2, -1)
    assert not (public[0] == public[1]).any()


def test_a_public_part_that_somebody_chose_would_open_an_update(monkeypatch):
    """With the fault: whoever makes it zero reads the levels off."""
    monkeypatch.setattr(
        lattice_mask,
        "public_elements",
        lambda seed, block, count, degree: np.zeros((count, degree), dtype=np.uint64),
    )
    levels = levels_of(1)
    packed = (hidden_of(levels)[0] + np.uint64(LATTICE.error_bound)) // np.uint64(LATTICE.step)
    assert (packed % np.uint64(LATTICE.radix) == levels[: LATTICE.coefficients]).all()


# --- sums -----------------------------------------------------------------------------------------


def opened_by(slots, hidden, statement=STATEMENT, sites=1):
    return reveal(hidden & np.uint64(int(MODULUS) - 1), slots, PLAN, statement, sites)


def test_sums_of_two_give_the_sum_and_neither_of_both():
    """What coordinator, authority and three sites hold of two honest ones."""
    modulus = np.uint64(PLAN.plain_modulus)
    first, second = levels_of(1), levels_of(2)
    (y, s), (z, t) = hidden_of(first), hidden_of(second)
    both = (s + t) % modulus
    assert (opened_by(both, y + z, sites=2) == first + second).all()
    # The secret itself opens its update; the sum of two does not, and half of it does not.
    assert (opened_by(s, y) == first).all()
    total = _from_slots(both, PLAN)
    for guess in (total, total // 2, (total + 1) // 2, total - DEVIATION):
        assert looks_uniform(y - _masks(guess, PLAN, STATEMENT))
        assert looks_uniform(z - _masks(guess, PLAN, STATEMENT))


def cohort(own_mask=True):
    """All sites of a round with masks of their own, and their updates."""
    secret = SecretRoundKey.generate(PLAN)
    key = PublicRoundKey.from_bytes(PLAN, secret.public_context())
    private = {name: X25519PrivateKey.generate() for name in NAMES}
    public = {name: k.public_key().public_bytes_raw() for name, k in private.items()}
    scope = MaskScope(STATEMENT, NAMES, PLAN)
    sites, updates = {}, {}
    for seed, name in enumerate(NAMES):
        peers = {peer: public[peer] for peer in NAMES if peer != name}
        sites[name] = SiteMasks(scope, name, private[name], peers, own_mask=own_mask)
        mask = sites[name].mask_for_update()
        updates[name] = encrypt_levels(levels_of(seed), PLAN, key, mask, STATEMENT)
    return secret, key, scope, sites, updates


def test_after_dropouts_the_sum_of_the_rest_opens_and_no_single_update():
    secret, key, scope, sites, updates = cohort()
    survivors = list(NAMES[1:4])
    statements = {name: sites[name].statement(survivors) for name in survivors}
    reveals = [sites[name].reveal(statements) for name in survivors]
    total = EncryptedSum(PLAN, key)
    for name in survivors:
        total.add(updates[name])
    summed, modulus = total.to_bytes(), np.uint64(PLAN.plain_modulus)
    correction = correction_for(scope, survivors, reveals)
    slots = (secret.decrypt_sum(summed) + correction) % modulus
    opened = opened_levels(slots, summed, PLAN, 3, STATEMENT)
    assert (opened == sum(levels_of(seed) for seed in (1, 2, 3))).all()
    # The authority opens a wiretapped update too, and finds its masks on the secret.
    for name in NAMES:
        secret._spent = False
        single = secret.decrypt_sum(updates[name])
        for taken_off in (single, (single + correction) % modulus):
            assert stats.kstest(taken_off / PLAN.plain_modulus, "uniform").pvalue > UNLIKELY
            with pytest.raises(PeerError):
                opened_levels(taken_off, updates[name], PLAN, 1, STATEMENT)


def test_a_site_that_was_told_another_statement_spoils_the_sum_and_opens_nothing():
    secret = SecretRoundKey.generate(PLAN)
    key = PublicRoundKey.from_bytes(PLAN, secret.public_context())
    nothing, total = np.zeros(PLAN.slots, dtype=np.uint64), EncryptedSum(PLAN, key)
    for statement in (STATEMENT, OTHER):
        total.add(encrypt_levels(levels_of(1), PLAN, key, nothing, statement))
    summed = total.to_bytes()
    slots = secret.decrypt_sum(summed)
    for statement in (STATEMENT, OTHER):
        with pytest.raises(PeerError, match="not the sum"):
            opened_levels(slots, summed, PLAN, 2, statement)


def test_without_a_statement_or_masks_nothing_is_encrypted_or_opened():
    secret = SecretRoundKey.generate(PLAN)
    key = PublicRoundKey.from_bytes(PLAN, secret.public_context())
    mask = np.zeros(PLAN.slots, dtype=np.uint64)
    with pytest.raises(RefusedError, match="signed statement"):
        encrypt_levels(levels_of(1), PLAN, key, mask)
    with pytest.raises(RefusedError, match="exactly when"):
        encrypt_levels(levels_of(1), PLAN, key, None, STATEMENT)
    blob = encrypt_levels(levels_of(1), PLAN, key, mask, STATEMENT)
    with pytest.raises(RefusedError, match="signed statement"):
        opened_levels(secret.decrypt_sum(blob), blob, PLAN, 1)


# --- foreign bytes --------------------------------------------------------------------------------


def test_crafted_updates_are_refused_and_change_nothing():
    secret = SecretRoundKey.generate(PLAN)
    key = PublicRoundKey.from_bytes(PLAN, secret.public_context())
    mask = np.zeros(PLAN.slots, dtype=np.uint64)
    good, more = (encrypt_levels(levels_of(i), PLAN, key, mask, STATEMENT) for i in (1, 2))
    cut, total = PLAN.ciphertext_bytes, EncryptedSum(PLAN, key)
    total.add(good)
    before = total.to_bytes()
    assert before == good
    bits = LATTICE.coefficients * (LATTICE.modulus_bits % 8) % 8
    assert bits, "the plan of this test should leave bits over"
    crafted = {
        "cut": more[:-1],
        "longer": more + b"\0",
        "ciphertexts alone": more[:cut],
        "hidden levels alone": more[cut:],
        "a bit behind the last level": more[:-1] + bytes([more[-1] | 0x80]),
        "hidden levels of another": more[:cut] + good[cut:],
        "ciphertext of another": good[:cut] + more[cut:],
        "a residue too large": b"\xff" * 3 + more[3:],
        "no lattice": key.encrypt(mask),
    }
    for name, blob in crafted.items():
        with pytest.raises(PeerError):
            total.add(blob)
        assert total.to_bytes() == before and total.count == 1, name
    total.add(more)


def test_changed_hidden_levels_at_the_coordinator_move_a_sum_as_any_site_could():
    """As with ciphertexts: nobody but signatures protects a sum's value, and it is not claimed."""
    secret = SecretRoundKey.generate(PLAN)
    key = PublicRoundKey.from_bytes(PLAN, secret.public_context())
    mask, total = np.zeros(PLAN.slots, dtype=np.uint64), EncryptedSum(PLAN, key)
    total.add(encrypt_levels(levels_of(1), PLAN, key, mask, STATEMENT))
    total._hidden[0] += np.uint64(LATTICE.step)
    summed = total.to_bytes()
    slots = secret.decrypt_sum(summed)
    opened = opened_levels(slots, summed, PLAN, 1, STATEMENT)
    assert (opened - levels_of(1)).sum() == 1
    beyond = np.full(LATTICE.coefficients, 2**LATTICE.modulus_bits - 1, dtype=np.uint64)
    wrong = summed[: PLAN.ciphertext_bytes] + numbers_to_wire(beyond, LATTICE.modulus_bits)
    with pytest.raises(PeerError, match="not the sum"):
        opened_levels(slots, wrong, PLAN, 1, STATEMENT)


# --- the shipped parties --------------------------------------------------------------------------


@pytest.fixture
def large(tiny_checkpoint, tmp_path):
    """A federation whose adapter is long enough for a lattice mask."""
    config = small_config(
        tiny_checkpoint("bert"),
        lora={
            "rank": 16,
            "target_modules": ["query", "key", "value", "output.dense", "intermediate.dense"],
        },
    )
    federation = build(tmp_path, config)
    length = len(federation.model().adapter())
    assert make_plan("bfv", config.encryption.bits, 3, length, True).lattice
    return federation


@pytest.mark.parametrize("missing", [None, "site-1"])
def test_a_round_of_the_shipped_parties_opens_the_sum(large, missing):
    names = [name for name in sorted(large.sites) if name != missing]
    large.tamper = lambda kind, name, message: (
        None if kind == "train" and name == missing else message
    )
    outcome = large.round(min_sites=2)
    assert list(outcome.survivors) == names
    expected = plain_means(large, names)
    assert (np.abs(outcome.mean - expected) < quantisation_step(large)).all()


def test_no_secret_serves_two_attempts_of_a_site(large, monkeypatch):
    secrets = []

    def noted(levels, plan, statement, random):
        hidden, slots = hide(levels, plan, statement, random)
        secrets.append((statement, _from_slots(slots, plan)))
        return hidden, slots

    monkeypatch.setattr(update, "hide", noted)
    for attempt in (1, 2):
        large.round(attempt=attempt)
    assert len(secrets) == 6 and len({statement for statement, _ in secrets}) == 2
    together = np.corrcoef([secret for _, secret in secrets])
    assert abs(together[np.triu_indices(6, 1)]).max() < 0.15


def test_a_sum_without_its_hidden_levels_is_refused_by_the_authority(large):
    original = large.authority.open_sum
    large.authority.open_sum = lambda request: original(
        dataclasses.replace(request, total=request.total[:-1])
    )
    with pytest.raises(PeerError, match="bytes"):
        large.round()
