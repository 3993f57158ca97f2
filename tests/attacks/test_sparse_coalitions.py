"""In cohorts with drawn neighbours, what a coalition opens is whole closed sets of honest sites.

The folder ``coalitions`` says how this is searched for; `coalitions.closed_sets` what is promised.
"""

from __future__ import annotations

import random

import pytest
from attacks.coalitions.closed_sets import closed_sets, search_sparse
from attacks.coalitions.drawing import Luck, SparseStage
from attacks.coalitions.players import player
from attacks.coalitions.recording import nothing_computed
from attacks.test_coalitions import (
    PRIVATE,
    a_cohort_is_not_compared_with_its_digest,
    any_entries_will_do,
    entries_are_not_read,
    sites_mask_for_a_part_of_a_cohort,
)
from support.federation import build, own_draw, records, small_config

from fedllm.encryption import masks
from fedllm.encryption.masks import SiteMasks
from fedllm.encryption.sparse import drawn_neighbours
from fedllm.encryption.survivors import survivor_statement
from fedllm.federation.protocol import neighbours, statements
from fedllm.federation.protocol.messages import Draw, Settle, SettleHeader, SignedRound
from fedllm.federation.protocol.neighbours import Around, NeighbourhoodReader
from fedllm.federation.site import draws, site, sums
from fedllm.federation.site.draws import Draws

A, B, C, D = (f"site-{number}" for number in range(4))
RING = Luck({A: (B,), B: (C,), C: (A,)})
CHAIN = Luck({A: (B,), B: (C,), C: (D,)})
TWO = Luck({A: (B, C), B: (A, D), C: (B, D)}, missing=1)
TRIED = ("tell", "forge")


@pytest.fixture
def staged(tiny_checkpoint, tmp_path, monkeypatch):
    """Make a stage on which the last of some sites is in league with coordinator and authority."""

    def stage(luck: Luck, sites: int = 4, colluders: int = 1, min_sites: int = 2) -> SparseStage:
        config = small_config(
            tiny_checkpoint("bert"),
            rounds={"min_sites": min_sites, "count": 4},
            lora={"rank": 0},
            data={"sites": max(3, min_sites)},
            **PRIVATE,
        )
        names = [f"site-{number}" for number in range(sites)]
        federation = build(tmp_path / "sites", config, {name: records(1) for name in names})
        recorder = nothing_computed(monkeypatch)
        found = SparseStage(
            federation, tmp_path / "runs", recorder, names[sites - colluders :], True, 0
        )
        found.lucky(monkeypatch, luck)
        return found

    return stage


@pytest.mark.parametrize("luck", [RING, CHAIN, TWO], ids=["ring", "chain", "one may be missing"])
def test_what_is_opened_is_whole_closed_sets(staged, luck):
    stage = staged(luck)
    found = search_sparse(stage, [stage.signed()], TRIED)
    assert found.broken is None
    # The search is not blind: it opens the smallest that there are.
    assert found.sets <= closed_sets(stage, 2)
    assert min(map(len, found.sets)) == min(map(len, closed_sets(stage, 2)))


def random_luck(chance: random.Random, sites: int, honest: int) -> Luck:
    names = [f"site-{number}" for number in range(sites)]
    count = chance.choice([1, 2])
    drawn = {
        name: tuple(sorted(chance.sample([n for n in names if n != name], count)))
        for name in names[:honest]
    }
    return Luck(drawn, chance.choice([0, 0, 1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "colluders", "number"),
    [*((4, 1, n) for n in range(6)), (4, 0, 0), (5, 1, 0), (5, 1, 1), (5, 2, 0), (6, 1, 0)],
)
def test_nor_with_other_draws_and_in_larger_cohorts(staged, sites, colluders, number):
    chance = random.Random(f"{sites} {colluders} {number}")
    luck = random_luck(chance, sites, sites - colluders)
    stage = staged(luck, sites, colluders, min_sites=max(2, sites - 2))
    found = search_sparse(stage, [stage.signed()], TRIED, most=2000)
    assert found.broken is None, luck


@pytest.mark.parametrize("attempt", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nor_under_two_statements(staged, attempt):
    """Of one attempt: each site draws for one of them alone."""
    stage = staged(CHAIN, min_sites=3)
    both = [stage.signed(), stage.signed(adapter=stage.null_adapter(), attempt=attempt)]
    assert search_sparse(stage, both).broken is None


def test_nor_with_an_entry_of_its_own_in_an_honest_sites_place(staged):
    stage = staged(CHAIN)
    # Whoever drew it refuses; to others it is one more in league.
    found = search_sparse(
        stage, [stage.signed(entries={B: stage.entries(B)["posing"]})], ("forge",)
    )
    assert found.broken is None
    assert found.sets == {frozenset([C])}


def test_nor_does_a_site_believe_what_it_did_not_sign_of_itself(staged):
    """From how many units it has follow its sampling rate and its noise."""
    stage = staged(RING)
    own = stage.member(stage.federation.identities[A])
    signed = stage.signed(entries={A: own.model_copy(update={"units": 2**40})})
    order = signed.ordered(signed.arounds[A][0])
    refusal = player(stage, A).site.train(order).header.refusal
    assert refusal is not None
    assert "signature" in refusal.message


# --- the mends taken out --------------------------------------------------------------------------


def seeds_are_revealed_without_signatures(patch):
    patch.setattr(SiteMasks, "answering", lambda self, survivors: ())


def missing_neighbours_are_not_counted(patch):
    right = masks.settled_statement

    def settled(scope, name, drawn, survivors, minimum):
        return right(scope, name, (), survivors, minimum)

    patch.setattr(masks, "settled_statement", settled)


def complaint_is_ignored(words):
    def mend(patch):
        def require(condition, complaint):
            if words not in complaint:
                statements.require(condition, complaint)

        patch.setattr(neighbours, "require", require)

    return mend


def signatures_are_not_read(patch):
    def believed(scope, survivors, signatures, roster):
        return dict.fromkeys(signatures, survivor_statement(scope, survivors))

    patch.setattr(sums, "check_settled", believed)


def neighbours_may_be_left_out(patch):
    """As a site would that shares no masks with whom it drew and was not told of."""
    sites_mask_for_a_part_of_a_cohort(patch)
    right = NeighbourhoodReader.read

    def read(self, found, statement, ledger):
        told = {one.member.name: one.member for one in found.near}
        drawn = own_draw(self._identity, ledger, statement)
        if set(drawn) <= set(told):
            return right(self, found, statement, ledger)
        return Around(told.pop(self._identity.name), told, drawn)

    patch.setattr(NeighbourhoodReader, "read", read)


WITHOUT = {
    "seeds are revealed without signatures": (seeds_are_revealed_without_signatures, RING),
    "signatures are not read": (signatures_are_not_read, RING),
    "missing neighbours are not counted": (missing_neighbours_are_not_counted, RING),
    "neighbours may be left out": (neighbours_may_be_left_out, CHAIN),
    "any entries will do": (any_entries_will_do, CHAIN),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_mend_the_search_finds_the_attack(staged, monkeypatch, name):
    mend, luck = WITHOUT[name]
    stage = staged(luck)
    mend(monkeypatch)
    assert search_sparse(stage, [stage.signed()], ("tell",)).broken is not None


HARMLESS = {
    # It adds masks, and masks alone: what a site counts on is what it drew itself. A coordinator
    # finds a seed that draws it for any other site anyhow.
    "a neighbour need not have drawn it": lambda patch: patch.setattr(
        neighbours, "_check_drawn", lambda *_: None
    ),
    # What a site drew it derives, and does not read. But it would train before it was asked to
    # draw, and its refusals would tell which neighbourhoods hold what it would have drawn.
    "its seed need not stand there": complaint_is_ignored("own seed"),
    # Whoever signs for a sum has trained, and so found its own entry where the digest leads.
    "entries are not read": entries_are_not_read,
    # Then two may be told of two entries, but each of them is the site's own.
    "the cohort is not compared": a_cohort_is_not_compared_with_its_digest,
}


@pytest.mark.slow
@pytest.mark.parametrize("posing", [(), (B,)], ids=["right entries", "posing"])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_mend_by_itself_opens_nothing_else(staged, monkeypatch, name, posing):
    stage = staged(CHAIN)
    HARMLESS[name](monkeypatch)
    entries = {name: stage.entries(name)["posing"] for name in posing}
    assert search_sparse(stage, [stage.signed(entries=entries)], TRIED).broken is None


# --- how often a coalition may try its luck -------------------------------------------------------


class Asking:
    """A site whose draws are its own, and a coalition that asks it."""

    def __init__(self, stage: SparseStage) -> None:
        self.stage, self.player = stage, player(stage, A)
        members = {name: stage.member(stage.federation.identities[name]) for name in stage.names}
        self.own, self.others = members.pop(A), members
        self.site = self.player.site

    def draw(self, signed):
        return self.site.draw(Draw(SignedRound(**signed.about))).header

    def settle(self, signed, survivors):
        around = signed.arounds[A][0]
        header = SettleHeader(**signed.about, survivors=survivors, around=around)
        return self.site.settle(Settle(header, signed.order.plan)).header


@pytest.fixture
def asking(staged, monkeypatch):
    real = neighbours.own_seed
    stage = staged(CHAIN)
    monkeypatch.setattr(neighbours, "own_seed", real)
    monkeypatch.setattr(site, "own_seed", real)
    return Asking(stage)


def trial(asking, number, attempt):
    """Return another statement: another adapter is enough."""
    adapter = number.to_bytes(4, "little") * (len(asking.stage._adapter) // 4)
    return asking.stage.signed(adapter=adapter, attempt=attempt)


def draws_seen(asking, statements=6):
    """Return for how many of some statements a coalition learns what a site draws."""
    seen = set()
    for number in range(statements):
        signed = trial(asking, number, attempt=1 + number // 3)
        if asking.draw(signed).refusal is None:
            seen.add(number)
        # Whoever may settle without those outside a sum has not drawn them.
        answers = {
            str(asking.settle(signed, tuple(sorted({A, other, D}))).refusal) for other in (B, C)
        } | {str(asking.settle(signed, asking.stage.names).refusal)}
        if len(answers) > 1:
            seen.add(number)
    return len(seen)


def test_a_coalition_sees_one_draw_of_each_attempt(asking):
    assert draws_seen(asking) == 2


def test_without_a_mend_it_sees_more(asking, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Draws, "add", lambda *_: None)
        assert draws_seen(asking) == 6
    asking.site._draws.__init__()
    # A site that settled by its draws, whether it was told of them or not.
    own = own_draw
    monkeypatch.setattr(
        NeighbourhoodReader,
        "read",
        lambda self, found, statement, ledger: Around(
            asking.own, asking.others, own(self._identity, ledger, statement)
        ),
    )
    # One statement shows it two times in three: some of sixteen do.
    assert draws_seen(asking, 24) > 8


def test_no_draw_tells_another(asking, monkeypatch):
    """Else a coalition would try statements by itself until one has the draws that it needs."""
    signed = [trial(asking, number, number + 1) for number in range(8)]

    def foretold():
        first = bytes.fromhex(asking.draw(signed[0]).seed)
        right = 0
        for one in signed:
            own = bytes.fromhex(asking.draw(one).seed)
            digest, count = one.statement.digest, 4
            right += drawn_neighbours(first, digest, 0, count, 1) == drawn_neighbours(
                own, digest, 0, count, 1
            )
        return right

    assert foretold() < len(signed)
    monkeypatch.setattr(
        site, "own_seed", lambda identity, ledger, statement: identity.derive("always")
    )
    assert foretold() == len(signed)


def test_nor_does_it_see_more_in_runs_without_end(asking, monkeypatch):
    monkeypatch.setattr(draws, "MOST_RUNS", 2)
    signed = [asking.stage.signed(run=f"run-{number}") for number in range(3)]
    assert [asking.draw(one).refusal is None for one in signed] == [True, True, False]
    assert asking.draw(signed[0]).refusal is None
