"""Nobody opens one site's update: not the authority, not the coordinator, not both together.

Each attack is also run against a round without the protection, where it must succeed: an
attack that never works proves nothing.
"""

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from fedllm.encryption.masks import SiteMasks, _expand, _sign, correction_for
from fedllm.encryption.pack import pack, unpack
from fedllm.encryption.plan import make_plan
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.encryption.survivors import MaskScope
from fedllm.errors import PeerError, RefusedError

LENGTH, COUNT = 12_000, 5
NAMES = tuple(f"site-{i}" for i in range(COUNT))
CLEAR = make_plan("bfv", 16, COUNT, LENGTH, False)
# Masks on the levels themselves, as in vectors that are too short for a lattice mask, but long
# enough for statistics. `test_lattice_masks.py` has the others.
MASKED = replace(CLEAR, masked=True)


def key_holder(plan):
    """A key authority that cheats: it opens whatever it likes, as often as it likes."""
    secret = SecretRoundKey.generate(plan)

    def open_anything(blob):
        secret._spent = False
        return secret.decrypt_sum(blob)

    return PublicRoundKey.from_bytes(plan, secret.public_context()), open_anything


def round_of(plan, own_mask=False):
    """A round of updates whose levels are far from uniform, as real ones are."""
    private = {name: X25519PrivateKey.generate() for name in NAMES}
    public = {name: key.public_key().public_bytes_raw() for name, key in private.items()}
    key, open_anything = key_holder(plan)
    random = np.random.default_rng(1)
    levels = {name: random.integers(30_000, 36_000, LENGTH).astype(np.uint64) for name in NAMES}
    slots = {name: pack(levels[name], plan) for name in NAMES}
    sites = {}
    if plan.masked:
        scope = MaskScope(key.fingerprint, NAMES, plan)
        for name in NAMES:
            peers = {peer: public[peer] for peer in NAMES if peer != name}
            sites[name] = SiteMasks(scope, name, private[name], peers, own_mask=own_mask)
            masks = sites[name].mask_for_update()
            slots[name] = (slots[name] + masks) % np.uint64(plan.plain_modulus)
    return levels, {name: key.encrypt(slots[name]) for name in NAMES}, sites, open_anything, key


# Some sixty tests are made of slots that are right. The laws of their statistics hold only
# roughly so far out: bins of 60 expected values reach ten deviations with 1e-16 (Poisson).
UNLIKELY = 1e-15


def looks_uniform(slots, plan):
    """Whether nothing sets the slots apart from uniform ones, nor consecutive ones."""
    scaled = slots.astype(np.float64) / plan.plain_modulus
    counts = np.histogram(scaled, bins=64, range=(0, 1))[0]
    low = np.bincount((slots % np.uint64(64)).astype(int), minlength=64)
    lag = stats.pearsonr(scaled[:-1], scaled[1:]).pvalue
    return min(stats.chisquare(counts).pvalue, stats.chisquare(low).pvalue, lag) > UNLIKELY


def subtract(left, right, plan):
    modulus = np.uint64(plan.plain_modulus)
    return (left + (modulus - right % modulus)) % modulus


def test_authority_with_a_wiretap_reads_an_unmasked_update():
    levels, blobs, _, open_anything, _ = round_of(CLEAR)
    slots = open_anything(blobs[NAMES[0]])
    assert (unpack(slots, CLEAR, 1) == levels[NAMES[0]]).all()
    assert not looks_uniform(slots, CLEAR)


def test_authority_with_a_wiretap_reads_nothing_of_a_masked_update():
    levels, blobs, _, open_anything, _ = round_of(MASKED)
    for name in NAMES:
        slots = open_anything(blobs[name])
        assert looks_uniform(slots, MASKED)
        with pytest.raises(PeerError):
            unpack(slots, MASKED, 1)
        low = (slots[:-1] & np.uint64((1 << MASKED.field_bits) - 1)).astype(np.float64)
        assert stats.pearsonr(low, levels[name][: len(low)].astype(np.float64)).pvalue > UNLIKELY


def test_coordinator_alone_reads_nothing_of_a_ciphertext():
    """Its best key is one of its own; and residues of opposite updates look the same."""
    _, blobs, _, _, key = round_of(CLEAR)
    own = SecretRoundKey.generate(CLEAR)
    assert looks_uniform(own.decrypt_sum(blobs[NAMES[0]]), CLEAR)
    prime = CLEAR.ciphertext_primes[0]
    for level in (0, CLEAR.top_level):
        blob = key.encrypt(pack(np.full(LENGTH, level, np.uint64), CLEAR))
        first = np.frombuffer(blob[: 5 * CLEAR.poly_degree], np.uint8).reshape(-1, 5)
        values = first.astype(np.float64) @ 256.0 ** np.arange(5) / prime
        assert stats.kstest(values, "uniform").pvalue > UNLIKELY


@pytest.mark.parametrize("missing", range(1, COUNT))
def test_coordinator_and_authority_read_nothing_of_a_part_of_the_cohort(missing):
    _, blobs, _, open_anything, key = round_of(MASKED)
    total = EncryptedSum(MASKED, key)
    for name in NAMES[missing:]:
        total.add(blobs[name])
    assert looks_uniform(open_anything(total.to_bytes()), MASKED)


def test_coordinator_and_authority_read_the_sum_of_the_whole_cohort():
    levels, blobs, _, open_anything, key = round_of(MASKED)
    total = EncryptedSum(MASKED, key)
    for blob in blobs.values():
        total.add(blob)
    expected = np.sum(list(levels.values()), axis=0)
    assert (unpack(open_anything(total.to_bytes()), MASKED, COUNT) == expected).all()


def test_same_masked_update_in_two_rounds_is_not_the_same_twice():
    slots = []
    for _ in range(2):
        _, blobs, _, open_anything, _ = round_of(MASKED)
        slots.append(open_anything(blobs[NAMES[0]]))
    assert looks_uniform(subtract(slots[0], slots[1], MASKED), MASKED)


def test_site_falsely_called_dropped_stays_hidden_from_both():
    """The coordinator holds the victim's update, names it dropped, and gets all reveals."""
    levels, blobs, sites, open_anything, key = round_of(MASKED, own_mask=True)
    victim, survivors = NAMES[2], [n for n in NAMES if n != NAMES[2]]
    statements = {name: sites[name].statement(survivors) for name in survivors}
    reveals = {name: sites[name].reveal(statements) for name in survivors}
    pairs = [(_sign(victim, name), reveals[name].pair_seeds[victim]) for name in survivors]
    stripped = subtract(open_anything(blobs[victim]), _expand(pairs, MASKED), MASKED)
    assert looks_uniform(stripped, MASKED)
    # What the reveals do open is the survivors' sum, and none of its terms.
    scope, total = sites[victim].scope, EncryptedSum(MASKED, key)
    for name in survivors:
        total.add(blobs[name])
        alone = _expand([(1, reveals[name].own_seed)], MASKED)
        pair = _expand([(_sign(name, victim), reveals[name].pair_seeds[victim])], MASKED)
        slots = subtract(subtract(open_anything(blobs[name]), alone, MASKED), pair, MASKED)
        assert looks_uniform(slots, MASKED)
    opened = open_anything(total.to_bytes()) + correction_for(
        scope, survivors, list(reveals.values())
    )
    opened %= np.uint64(MASKED.plain_modulus)
    expected = sum(levels[name] for name in survivors)
    assert (unpack(opened, MASKED, len(survivors)) == expected).all()


def test_without_own_masks_a_false_dropout_would_open_the_victim():
    """Why `SiteMasks` makes no statement without them: single masking falls to this lie."""
    levels, blobs, sites, open_anything, _ = round_of(MASKED, own_mask=False)
    victim, survivors = NAMES[2], [n for n in NAMES if n != NAMES[2]]
    with pytest.raises(RefusedError):
        sites[survivors[0]].statement(survivors)
    pairs = [(_sign(victim, name), sites[name]._pairs.seed(victim)) for name in survivors]
    stripped = subtract(open_anything(blobs[victim]), _expand(pairs, MASKED), MASKED)
    assert (unpack(stripped, MASKED, 1) == levels[victim]).all()


def test_coordinator_that_names_two_sets_gets_no_reveal():
    """Everyone else hears that the victim dropped; the victim hears that nobody did."""
    _, _, sites, _, _ = round_of(MASKED, own_mask=True)
    victim, others = NAMES[0], NAMES[1:]
    statements = {name: sites[name].statement(others) for name in others}
    statements[victim] = sites[victim].statement(NAMES)
    with pytest.raises(RefusedError, match="do not agree"):
        sites[victim].reveal(statements)
    with pytest.raises(RefusedError, match="do not agree"):
        sites[victim].reveal({name: sites[victim].statement(NAMES) for name in [victim]})
