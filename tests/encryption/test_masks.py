"""Masks cancel in the sum of the survivors, and a site never helps to open two sums."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from fedllm.encryption.masks import SiteMasks, _expand, _uniform, correction_for
from fedllm.encryption.plan import make_plan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey, SecretRoundKey
from fedllm.encryption.survivors import MaskScope
from fedllm.encryption.update import encrypt_update, open_sum
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.randomness import RandomStream

NAMES = tuple(f"site-{i:02d}" for i in range(10))
LENGTH = 30
PRIVATE = {name: X25519PrivateKey.generate() for name in NAMES}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in PRIVATE.items()}


def scope_of(names=NAMES, statement="00" * 32, sites=10):
    return MaskScope(statement, tuple(names), make_plan("bfv", 16, sites, LENGTH, True))


def masks_of(scope, own_mask=True, min_survivors=2):
    return {
        name: SiteMasks(
            scope,
            name,
            PRIVATE[name],
            {peer: PUBLIC[peer] for peer in scope.cohort if peer != name},
            own_mask=own_mask,
            min_survivors=min_survivors,
        )
        for name in scope.cohort
    }


def added(parts, plan):
    return [sum(int(v) for v in column) % plan.plain_modulus for column in zip(*parts, strict=True)]


def reveals_of(sites, survivors):
    statements = {name: sites[name].statement(survivors) for name in survivors}
    return [sites[name].reveal(statements) for name in survivors]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_masks_of_a_whole_cohort_cancel(count):
    scope = scope_of(NAMES[:count])
    parts = [site.mask_for_update() for site in masks_of(scope, own_mask=False).values()]
    assert added(parts, scope.plan) == [0] * scope.plan.slots
    for smaller in itertools.combinations(parts, count - 1):
        assert 0 not in added(smaller, scope.plan)


@pytest.mark.parametrize("dropped", range(0, 9))
def test_exact_sum_of_the_rest_after_dropouts(dropped):
    scope = scope_of()
    plan, quantiser = scope.plan, Quantiser([(LENGTH, 1.0)], 16)
    secret = SecretRoundKey.generate(plan)
    public = PublicRoundKey.from_bytes(plan, secret.public_context())
    sites, total = masks_of(scope), EncryptedSum(plan, public)
    random = np.random.default_rng(dropped)
    # Any of the sites may go, not only the last ones.
    survivors = sorted(random.permutation(NAMES)[dropped:].tolist())
    expected = np.zeros(LENGTH)
    for name in survivors:
        vector = random.uniform(-1, 1, LENGTH).astype(np.float32)
        masks = sites[name].mask_for_update()
        total.add(
            encrypt_update(vector, plan, quantiser, public, masks, RandomStream.seeded(1, name))
        )
        levels = quantiser.quantise(vector, RandomStream.seeded(1, name))
        expected += quantiser.dequantise_sum(levels, 1)
    correction = correction_for(scope, survivors, reveals_of(sites, survivors))
    opened = open_sum(total.to_bytes(), plan, quantiser, secret, len(survivors), correction)
    assert np.abs(opened - expected).max() < 1e-12


@pytest.mark.parametrize("changed", [{"statement": "01" * 32}, {"sites": 11}, {"names": NAMES[:9]}])
def test_a_mask_is_of_one_statement_plan_and_cohort(changed):
    first = masks_of(scope_of(), own_mask=False)[NAMES[0]].mask_for_update()
    second = masks_of(scope_of(**changed), own_mask=False)[NAMES[0]].mask_for_update()
    assert not (first == second).any()


def test_own_mask_is_never_the_same():
    first, second = (masks_of(scope_of())[NAMES[0]].mask_for_update() for _ in range(2))
    assert not (first == second).any()


def test_site_that_restarts_with_its_seed_takes_its_mask_off():
    scope, survivors = scope_of(NAMES[:3]), NAMES[:3]

    def site(name, **seed):
        peers = {peer: PUBLIC[peer] for peer in survivors if peer != name}
        return SiteMasks(scope, name, PRIVATE[name], peers, own_mask=True, **seed)

    before = site(NAMES[0], own_seed=bytes(range(32))).mask_for_update()
    others = {name: site(name) for name in survivors[1:]}
    masks = [before, *(other.mask_for_update() for other in others.values())]
    again = others | {NAMES[0]: site(NAMES[0], own_seed=bytes(range(32)))}
    correction = correction_for(scope, survivors, reveals_of(again, survivors))
    assert added([*masks, correction], scope.plan) == [0] * scope.plan.slots


def test_seed_of_an_own_mask_is_32_bytes_and_needs_the_mask():
    peers = {peer: PUBLIC[peer] for peer in NAMES[1:]}
    for arguments in ({"own_seed": bytes(31), "own_mask": True}, {"own_seed": bytes(32)}):
        with pytest.raises(ConfigError, match="32 bytes"):
            SiteMasks(scope_of(), NAMES[0], PRIVATE[NAMES[0]], peers, **arguments)


def test_one_mask_covers_one_update():
    site = masks_of(scope_of())[NAMES[0]]
    site.mask_for_update()
    with pytest.raises(RefusedError, match="has been used"):
        site.mask_for_update()


def test_site_settles_on_one_set_of_survivors():
    site = masks_of(scope_of())[NAMES[0]]
    assert site.statement(NAMES[:5]) == site.statement(list(NAMES[:5]))
    with pytest.raises(RefusedError, match="other survivors"):
        site.statement(NAMES[:6])


@pytest.mark.parametrize(
    "survivors",
    [NAMES[:3], NAMES[1:], (*NAMES, "stranger"), (), NAMES[4::-1], NAMES[:2] * 3],
)
def test_site_refuses_survivors_it_must_not_open(survivors):
    site = masks_of(scope_of(), min_survivors=4)[NAMES[0]]
    with pytest.raises(RefusedError, match="not a set"):
        site.statement(survivors)


def test_dropout_voids_a_round_without_own_masks():
    site = masks_of(scope_of(), own_mask=False)[NAMES[0]]
    with pytest.raises(RefusedError):
        site.statement(NAMES[:9])
    with pytest.raises(RefusedError):
        site.reveal({})


def test_nothing_is_revealed_before_all_survivors_agree():
    sites = masks_of(scope_of())
    everyone = {name: sites[name].statement(NAMES) for name in NAMES[:-1]}
    with pytest.raises(RefusedError, match="do not agree"):
        sites[NAMES[0]].reveal(everyone)
    everyone[NAMES[-1]] = sites[NAMES[-1]].statement(NAMES[1:])
    with pytest.raises(RefusedError, match="do not agree"):
        sites[NAMES[0]].reveal(everyone)


def test_reveal_holds_seeds_of_dropped_sites_only():
    sites = masks_of(scope_of())
    reveal = reveals_of(sites, NAMES[:7])[0]
    assert sorted(reveal.pair_seeds) == list(NAMES[7:])
    assert reveal.own_seed.hex() not in repr(reveal)


def test_reveal_survives_its_own_bytes_and_nothing_else_does():
    scope = scope_of()
    reveal = reveals_of(masks_of(scope), NAMES[:7])[0]
    blob = reveal.to_bytes()
    assert Reveal.from_bytes(blob, scope) == reveal
    for bad in (b"", b"{}", b"[]", blob + b" ", blob.replace(b"site-09", b"site-99"), blob[:-3]):
        with pytest.raises(PeerError, match="malformed"):
            Reveal.from_bytes(bad, scope)


def test_missing_or_foreign_reveals_are_refused():
    scope = scope_of()
    reveals = reveals_of(masks_of(scope), NAMES[:7])
    with pytest.raises(PeerError, match="did not reveal"):
        correction_for(scope, NAMES[:7], reveals[:-1])
    with pytest.raises(PeerError, match="other masks"):
        correction_for(scope, NAMES[:7], [*reveals[:-1], Reveal(NAMES[6], bytes(32), {})])


def test_keys_of_the_round_must_be_the_cohorts():
    scope = scope_of(NAMES[:3])
    good = {NAMES[1]: PUBLIC[NAMES[1]], NAMES[2]: PUBLIC[NAMES[2]]}
    for keys in (
        {NAMES[1]: good[NAMES[1]]},
        good | {NAMES[3]: PUBLIC[NAMES[3]]},
        good | {NAMES[2]: PUBLIC[NAMES[1]]},
        good | {NAMES[2]: PUBLIC[NAMES[0]]},
        good | {NAMES[2]: bytes(32)},
        good | {NAMES[2]: b"short"},
    ):
        with pytest.raises(PeerError):
            SiteMasks(scope, NAMES[0], PRIVATE[NAMES[0]], keys).mask_for_update()


def test_cohort_below_the_minimum_is_refused():
    with pytest.raises(RefusedError, match="fewer"):
        masks_of(scope_of(NAMES[:3]), min_survivors=4)


@pytest.mark.parametrize("names", [NAMES[:1], (NAMES[1], NAMES[0]), (NAMES[0], NAMES[0])])
def test_cohort_is_sorted_and_of_two_or_more(names):
    with pytest.raises(ConfigError):
        scope_of(names)


def test_masks_hide_and_do_not_travel():
    site = masks_of(scope_of())[NAMES[0]]
    assert repr(site) == "SiteMasks(site-00)"
    with pytest.raises(TypeError):
        pickle.dumps(site)


@pytest.mark.parametrize("modulus", [5, 2**33 + 17, 3 * 2**58 + 1])
def test_mask_values_are_uniform_below_the_modulus(modulus):
    values = _uniform(RandomStream.seeded(1), modulus, 60_000)
    assert values.max() < modulus
    # A modulus far from a power of two shows a bias of plain remainders at once.
    counts = np.bincount((values.astype(object) * 5 // modulus).astype(int), minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_masks_of_both_ends_agree_on_every_platform():
    """AES-256 in counter mode under a zero key, little endian words, ten low bits."""
    assert _uniform(RandomStream(bytes(32)), 1000, 5).tolist() == [476, 173, 851, 937, 974]


@pytest.mark.parametrize("modulus", [5, 1000, 12_289, 2**33 + 17, 2**63 - 25])
@pytest.mark.parametrize("count", [1, 7, 4096])
def test_what_is_drawn_again_takes_the_next_words_in_order(modulus, count):
    """Word by word; what no modulus or length may change, or the masks of a pair differ."""
    for seed in range(50 if count < 10 else 1):
        words = iter(RandomStream.seeded(seed).uint64(4 * count + 200).tolist())
        expected, waiting = [0] * count, list(range(count))
        while waiting:
            place, low = waiting.pop(0), next(words) % (1 << modulus.bit_length())
            expected[place] = low
            if low >= modulus:
                waiting.append(place)
        assert _uniform(RandomStream.seeded(seed), modulus, count).tolist() == expected


@pytest.mark.parametrize("modulus", [5, 12_289, 2**60 - 93])
def test_streams_of_both_signs_add_up_without_a_carry(modulus):
    plan = replace(scope_of().plan, plain_modulus=modulus)
    # So many that their sum is beyond 64 bits where slots are wide.
    seeds = [bytes([number]) * 32 for number in range(1, 65)]
    signs = [1] * 40 + [-1] * 24
    columns = [_uniform(RandomStream(seed), plan.plain_modulus, plan.slots) for seed in seeds]
    sums = sum(sign * c.astype(object) for sign, c in zip(signs, columns, strict=True))
    found = _expand(zip(signs, seeds, strict=True), plan)
    assert found.tolist() == (sums % plan.plain_modulus).tolist()
