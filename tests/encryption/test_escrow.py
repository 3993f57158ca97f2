"""What a survivor leaves opens with enough shares and never with fewer; who gives one, and when."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedllm.encryption import escrow as escrow_module
from fedllm.encryption.escrow import Escrow, _interpolated, lock, unlock
from fedllm.encryption.masks import SiteMasks, correction_for
from fedllm.encryption.pairs import MaskKey, PairSecrets
from fedllm.encryption.plan import make_plan
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.sparse import COMPLETE, FAILURE_BITS, MaskGraph, most_colluding
from fedllm.encryption.survivors import MaskScope, holders_of, shares_needed
from fedllm.errors import ConfigError, PeerError, RefusedError

NAMES = tuple(f"site-{i}" for i in range(6))
PRIVATE = {name: X25519PrivateKey.generate() for name in NAMES}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in PRIVATE.items()}
KEY = bytes(range(32))


def plain(reveal):
    return reveal


@st.composite
def locked(draw):
    holders = draw(st.integers(1, 12))
    needed = draw(st.integers(1, holders))
    shares = draw(st.lists(st.binary(min_size=32, max_size=32), min_size=holders, max_size=holders))
    some = draw(st.sets(st.sampled_from(range(holders))))
    return shares, needed, {place: shares[place] for place in some}


@given(locked(), st.binary(max_size=40))
def test_as_many_shares_as_needed_open_it_whichever_they_are(case, secret):
    shares, needed, some = case
    left = Escrow.from_bytes(lock(secret, KEY, shares, needed).to_bytes())
    assert len(left.points) == len(shares) + 1 - needed
    if len(some) >= needed:
        assert unlock(left, len(shares), some) == secret
    else:
        with pytest.raises(PeerError, match=f"{len(some)} of {needed} shares are there"):
            unlock(left, len(shares), some)


@given(locked(), st.integers(0, 2**255 - 20))
def test_with_one_share_less_every_key_is_as_likely(case, key):
    """For each there is one share of the last holder with which all that is seen fits."""
    shares, needed, _ = case
    points = dict(enumerate(lock(b"", KEY, shares, needed).points, len(shares) + 1))
    fewer = {place + 1: escrow_module._element(shares[place]) for place in range(needed - 1)}
    known = {0: key, **fewer, **points}
    assert len(known) == len(shares) + 1
    others = [_interpolated(known, place + 1) for place in range(needed - 1, len(shares))]
    again = [*shares[: needed - 1], *(value.to_bytes(32, "big") for value in others)]
    found = lock(b"", key.to_bytes(32, "big"), again, needed)
    assert dict(enumerate(found.points, len(shares) + 1)) == points


def test_a_wrong_share_and_a_changed_escrow_open_nothing():
    shares = [bytes([i]) * 32 for i in range(4)]
    left = lock(b"secret", KEY, shares, 3)
    assert b"secret" not in left.to_bytes()
    assert "secret" not in repr(left)
    wrong = {0: shares[0], 1: shares[1], 2: shares[3]}
    for found, given_ in ((left, wrong), (Escrow(left.points[::-1], left.box), None)):
        with pytest.raises(PeerError, match="one of them is not right"):
            unlock(found, 4, given_ or dict(enumerate(shares)))
    # With points of its sender's making alone, too.
    with pytest.raises(PeerError, match="one of them is not right"):
        unlock(Escrow((0,) * 9, left.box), 4, {})


def test_what_is_locked_twice_under_one_key_does_not_show_in_a_difference():
    shares = [bytes([i]) * 32 for i in range(3)]
    one, other = (lock(b"secret", KEY, shares, 2) for _ in range(2))
    assert one.points == other.points
    assert one.box[:12] != other.box[:12]


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x00",
        bytes(2) + bytes(40),
        b"\x00\x01" + bytes(44),
        b"\x00\x02" + bytes(64),
        b"\x00\x01" + b"\xff" * 32 + bytes(40),
        b"\xff\xff" + bytes(200),
    ],
)
def test_what_is_no_escrow_is_refused(blob):
    with pytest.raises(PeerError, match="malformed escrow"):
        Escrow.from_bytes(blob)


@pytest.mark.parametrize("needed", [0, 4])
def test_an_escrow_that_nobody_could_open_is_not_made(needed):
    with pytest.raises(ConfigError):
        lock(b"", KEY, [bytes(32)] * 3, needed)


# --- who holds shares -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holders", "min_sites", "needed"),
    [
        (2, 3, 2),
        (2, 2, 2),
        (1, 2, 1),
        (4, 3, 3),
        (4, 5, 4),
        (9, 3, 6),
        (9, 8, 7),
        (9, 10, 9),
        (99, 50, 66),
        (99, 90, 89),
        (3, 5, None),
        (0, 2, None),
    ],
)
def test_more_shares_than_colluders_can_hold(holders, min_sites, needed):
    scope = scope_of(NAMES)
    assert shares_needed(scope, holders, min_sites) == needed


@pytest.mark.parametrize(("sites", "neighbours", "colluders"), [(250, 61, 50), (1000, 89, 200)])
def test_colluders_among_ones_neighbours(sites, neighbours, colluders):
    most = most_colluding(sites, MaskGraph(neighbours, neighbours // 3, colluders))
    law = stats.hypergeom(sites - 1, colluders, neighbours)
    limit = 2.0**-FAILURE_BITS
    assert sites * law.sf(most) <= limit
    # The bound is an upper one; it costs no more than two neighbours.
    assert sites * law.sf(most - 2) > limit


def plan(sites=6):
    return make_plan("bfv", 16, sites, 30, True)


GRAPH = MaskGraph(3, 1, 2)


def scope_of(names=NAMES, graph=COMPLETE):
    return MaskScope("00" * 32, tuple(names), plan(), graph)


def site_of(scope, name, drawn=None, min_survivors=3, own_mask=True):
    peers = {peer: PUBLIC[peer] for peer in scope.cohort if peer != name}
    return SiteMasks(
        scope,
        name,
        PRIVATE[name],
        peers,
        own_mask=own_mask,
        min_survivors=min_survivors,
        drawn=drawn,
    )


def settled(scope, survivors, **options):
    sites = {name: site_of(scope, name, **options) for name in survivors}
    return sites, {name: sites[name].statement(survivors) for name in survivors}


def test_those_who_are_left_take_the_masks_of_two_others_off():
    scope, survivors = scope_of(), NAMES[:5]
    sites, statements = settled(scope, survivors)
    masks = [sites[name].mask_for_update() for name in survivors]
    left = {name: sites[name].escrow(KEY, plain) for name in survivors[:2]}
    reveals = [sites[name].reveal(statements) for name in survivors[2:]]
    for owner, escrow in left.items():
        holders = holders_of(survivors, owner)
        shares = {
            holders.index(name): sites[name].share(owner, (), statements) for name in survivors[2:]
        }
        reveals.append(Reveal.from_bytes(unlock(escrow, len(holders), shares), scope))
        assert reveals[-1] == sites[owner].reveal(statements)
    total = sum(mask.astype(object) for mask in masks) + correction_for(scope, survivors, reveals)
    assert not (total % scope.plan.plain_modulus).any()


def test_a_share_is_of_one_sum_one_owner_and_one_pair():
    scope = scope_of()
    seen = set()
    for survivors in (NAMES[:4], NAMES[:5]):
        sites, statements = settled(scope, survivors)
        for owner in NAMES[:2]:
            for holder in NAMES[2:4]:
                seen.add(sites[holder].share(owner, (), statements))
    assert len(seen) == 8
    pairs = PairSecrets(scope, NAMES[0], MaskKey(PRIVATE[NAMES[0]]), PUBLIC | {NAMES[0]: bytes(32)})
    assert pairs.share_key(NAMES[1]) != pairs.seed(NAMES[1]), "of which one is revealed"
    assert "hidden" not in repr(pairs)
    assert repr(pairs) == "PairSecrets(site-0)"
    with pytest.raises(TypeError):
        pickle.dumps(pairs)


def test_what_two_sites_agreed_on_serves_all_attempts_and_gives_each_its_own_secrets():
    key, others = MaskKey(PRIVATE[NAMES[0]]), {n: PUBLIC[n] for n in NAMES[1:]}
    seeds = set()
    for scope in (scope_of(), replace(scope_of(), statement="another")):
        kept = PairSecrets(scope, NAMES[0], key, others)
        alone = PairSecrets(scope, NAMES[0], MaskKey(PRIVATE[NAMES[0]]), others)
        beside = PairSecrets(
            scope, NAMES[1], MaskKey(PRIVATE[NAMES[1]]), PUBLIC | {NAMES[1]: bytes(32)}
        )
        assert kept.seed(NAMES[1]) == alone.seed(NAMES[1]) == beside.seed(NAMES[0])
        seeds |= {kept.seed(name) for name in NAMES[1:]}
    assert len(seeds) == 2 * len(others)
    assert repr(key) == "MaskKey(<hidden>)"
    with pytest.raises(TypeError):
        pickle.dumps(key)
    for _ in range(2):
        with pytest.raises(PeerError, match="not a valid X25519 key"):
            PairSecrets(scope_of(), NAMES[0], key, {NAMES[1]: bytes(32)}).seed(NAMES[1])


def test_no_share_without_agreement():
    scope, survivors = scope_of(), NAMES[:4]
    sites, statements = settled(scope, survivors)
    holder = site_of(scope, NAMES[1])
    with pytest.raises(RefusedError, match="has not settled"):
        holder.share(NAMES[0], (), statements)
    with pytest.raises(RefusedError, match="has not settled"):
        holder.escrow(KEY, plain)
    for missing in survivors:
        some = {name: words for name, words in statements.items() if name != missing}
        with pytest.raises(RefusedError, match="do not agree"):
            sites[NAMES[1]].share(NAMES[0], (), some)
    _, other = settled(scope, NAMES[:5])
    with pytest.raises(RefusedError, match="do not agree"):
        sites[NAMES[1]].share(NAMES[0], (), statements | {NAMES[0]: other[NAMES[0]]})


@pytest.mark.parametrize("owner", [NAMES[1], NAMES[5]], ids=["itself", "no survivor"])
def test_no_share_of_what_it_does_not_hold(owner):
    sites, statements = settled(scope_of(), NAMES[:4])
    with pytest.raises(RefusedError, match="holds no share"):
        sites[NAMES[1]].share(owner, (), statements)


# --- with drawn neighbours ------------------------------------------------------------------------

DRAWN = (NAMES[1], NAMES[2], NAMES[3])


@pytest.fixture
def sparse(monkeypatch):
    """The first site drew the next three, of whom one may be missing and none is in league."""
    monkeypatch.setattr("fedllm.encryption.survivors.most_colluding", lambda sites, graph: 1)
    scope = scope_of(graph=GRAPH)
    survivors = NAMES[:5]
    owner = site_of(scope, NAMES[0], DRAWN)
    words = owner.statement(survivors)
    holder = site_of(scope, NAMES[1], (NAMES[0], NAMES[4], NAMES[2]))
    holder.statement(survivors)
    return owner, holder, words


def test_a_drawn_neighbour_gives_its_share_on_the_owners_neighbours_words(sparse):
    owner, holder, words = sparse
    left = owner.escrow(KEY, plain)
    assert len(left.points) == 2, "two of three are needed"
    statements = dict.fromkeys((NAMES[0], *DRAWN), words)
    about = [site_of(owner.scope, name, (NAMES[0], NAMES[4], NAMES[5])) for name in DRAWN[1:]]
    shares = {0: holder.share(NAMES[0], DRAWN, statements)}
    for place, site in enumerate(about, 1):
        site.statement(NAMES[:5])
        shares[place] = site.share(NAMES[0], DRAWN, statements)
    for gone in shares:
        some = {place: share for place, share in shares.items() if place != gone}
        assert Reveal.from_bytes(unlock(left, 3, some), owner.scope).own_seed == owner._own_seed


@pytest.mark.parametrize(
    "asked", [DRAWN, (NAMES[0], *DRAWN[:2])], ids=["the owner", "a neighbour of the owner's"]
)
def test_a_word_that_the_owner_would_ask_for_must_be_there(sparse, asked):
    _, holder, words = sparse
    with pytest.raises(RefusedError, match="do not agree"):
        holder.share(NAMES[0], DRAWN, dict.fromkeys(asked, words))


def test_of_others_than_it_drew_a_share_opens_nothing(sparse):
    _, holder, words = sparse
    false = (NAMES[1], NAMES[2], NAMES[4])
    told = holder.share(NAMES[0], false, dict.fromkeys((NAMES[0], *false), words))
    true = holder.share(NAMES[0], DRAWN, dict.fromkeys((NAMES[0], *DRAWN), words))
    assert told != true
    with pytest.raises(RefusedError, match="holds no share"):
        holder.share(NAMES[0], (*DRAWN[1:], NAMES[4]), dict.fromkeys(NAMES[:5], words))


def test_a_sum_without_too_many_of_the_owners_neighbours_gets_no_share(sparse):
    _, holder, words = sparse
    # The sixth is outside the sum; two of these three are one too many.
    drawn = (NAMES[1], NAMES[5], "site-9")
    with pytest.raises(RefusedError, match="not a set"):
        holder.share(NAMES[0], drawn, dict.fromkeys((NAMES[0], NAMES[1]), words))


def test_nothing_is_left_where_colluders_could_hold_enough(sparse, monkeypatch):
    owner, _, _ = sparse
    monkeypatch.setattr("fedllm.encryption.survivors.most_colluding", lambda sites, graph: 3)
    assert owner.escrow(KEY, plain) is None
