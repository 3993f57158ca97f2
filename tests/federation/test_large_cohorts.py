"""Rounds in which each site shares masks with some others alone."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from support.federation import build, plain_means, quantisation_step, records, small_config

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.encryption import sparse
from fedllm.errors import PeerError, RefusedError
from fedllm.federation.protocol.messages import Draw, Drawn, Settle, Train, Unmask
from fedllm.federation.site.draws import MOST_DRAWS
from fedllm.federation.site.work import SiteWork
from fedllm.mechanisms import LocalStatistics

SITES = 12


def policy(config, **allow):
    """What lets such cohorts take part: they are too small for a fifth to be in league."""
    asked = {"min_cohort": 1, "masks": "optional", "non_private": True, "colluding_share": 0.1}
    return SitePolicy(
        budget=BudgetSection(epsilon=1e6, delta=config.privacy.delta),
        allow=AllowSection(**{**asked, **allow}),
    )


@pytest.fixture
def federation(tiny_checkpoint, tmp_path, monkeypatch):
    """A cohort that counts as a large one, in which each site draws two others."""
    monkeypatch.setattr(sparse, "COMPLETE_TO", 10)
    # No graph of two neighbours guarantees anything; these tests are about the exchange.
    monkeypatch.setattr(sparse, "least_honest", lambda sites, graph: sites * (graph.neighbours > 1))
    monkeypatch.setattr(sparse, "_most_missing", lambda sites, neighbours, lost: 1)
    sparse.plan_graph.cache_clear()
    names = [f"site-{i:02}" for i in range(SITES)]
    config = small_config(
        tiny_checkpoint("bert"),
        data={"sites": SITES},
        rounds={"count": 1, "min_sites": 3},
        training={"local_steps": 1, "batch_size": 4, "learning_rate": 0.01},
        encryption={"colluding_share": 0.1},
    )
    data = {name: records(6, seed=i) for i, name in enumerate(names)}
    yield build(tmp_path, config, data, policy(config))
    sparse.plan_graph.cache_clear()


@pytest.fixture
def idle(federation, monkeypatch):
    """The same, with nothing that is trained: what leaves is zero everywhere."""

    def nothing(work, order, dataset, noise_multiplier):
        levels = np.full(order.plan.length, order.plan.top_level // 2, dtype=np.uint64)
        return levels, LocalStatistics(0.0, 0, 0, (0.0,) * 5)

    monkeypatch.setattr(SiteWork, "train", nothing)
    monkeypatch.setattr(SiteWork, "require_trainable", lambda *_: None)
    return federation


def silent(kind, names, asked, name, message):
    """Let sites say nothing to one kind of question."""
    return None if asked == f"{kind} request" and name in names else message


def test_the_mean_is_that_of_the_updates_and_masks_are_few(federation):
    orders = []

    def listen(kind, name, message):
        if isinstance(message, Train):
            orders.append(message.header.around)
        return message

    federation.tamper = listen
    expected = plain_means(federation)
    outcome = federation.round()
    assert len(outcome.survivors) == SITES
    assert (np.abs(outcome.mean - expected) <= quantisation_step(federation)).all()
    shared = [len(around.near) - 1 for around in orders]
    assert min(shared) >= 2
    assert sum(shared) <= 2 * 2 * SITES


@pytest.mark.parametrize("kind", ["draw", "train"])
def test_a_site_that_goes_away_is_left_out(idle, kind):
    gone = ("site-03",)
    idle.tamper = partial(silent, kind, gone)
    outcome = idle.round()
    assert set(outcome.dropped) == set(gone)
    assert not outcome.mean.any()


def test_a_site_without_its_neighbours_settles_on_nothing(idle):
    drawn = {}

    def isolate(kind, name, message):
        if isinstance(message, Train):
            places = [one.place for one in message.header.around.near]
            drawn[name] = {f"site-{place:02}" for place in places} - {name}
        # All neighbours of one site are missing from the sum that is asked for.
        if kind == "train" and name in drawn["site-00"]:
            return None
        return message

    idle.tamper = isolate
    with pytest.raises((PeerError, RefusedError), match="site-00"):
        idle.round()


def test_the_same_attempt_is_drawn_for_once(idle):
    asked = []

    def keep(kind, name, message):
        if isinstance(message, Draw) and name == "site-00":
            asked.append(message)
        return message

    idle.tamper = keep
    idle.round(1, attempt=1)
    site = idle.sites["site-00"]
    first = site.draw(asked[0]).header.seed
    assert first == site.draw(asked[0]).header.seed
    with pytest.raises(RefusedError, match="opened before"):
        idle.authority._opened._seen.clear()
        idle.round(1, attempt=1, min_sites=4)
    idle.round(1, attempt=2)
    assert site.draw(asked[-1]).header.seed != first


def test_a_site_does_not_draw_without_end(idle, monkeypatch):
    monkeypatch.setattr("fedllm.federation.site.draws.MOST_DRAWS", 2)
    assert MOST_DRAWS == 1024
    for attempt in (1, 2):
        idle.round(1, attempt=attempt)
    with pytest.raises((PeerError, RefusedError), match="drawn its neighbours 2 times"):
        idle.round(1, attempt=3)


def other_seed(around):
    near = [
        one.model_copy(update={"seed": "00" * 32}) if one.place == around.place else one
        for one in around.near
    ]
    return around.model_copy(update={"near": tuple(near)})


def without(around, place):
    return around.model_copy(update={"near": tuple(n for n in around.near if n.place != place)})


def another_key(around):
    first, *rest = around.near
    member = first.member.model_copy(update={"mask_key": "11" * 32})
    return around.model_copy(update={"near": (first.model_copy(update={"member": member}), *rest)})


def foreign(around):
    place = next(one.place for one in around.near if one.place != around.place)
    return around.model_copy(update={"place": place})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_seed, "does not follow from this site's own seed"),
        (lambda around: without(around, around.place), "digest of its cohort|not that of the"),
        (another_key, "not that of the cohort"),
        (lambda around: around.model_copy(update={"siblings": ()}), "digest of its cohort"),
        (lambda a: a.model_copy(update={"siblings": (*a.siblings, "00" * 32)}), "digest of its"),
        (foreign, "another site's"),
    ],
    ids=["seed", "left out", "key", "short path", "long path", "another's"],
)
@pytest.mark.parametrize("kind", [Train, Settle, Unmask])
def test_a_neighbourhood_that_does_not_follow_is_refused(idle, change, words, kind):
    said = []

    def tamper(asked, name, message):
        if isinstance(message, kind) and name == "site-07":
            around = change(message.header.around)
            header = message.header.model_copy(update={"around": around})
            return replace(message, header=header)
        if not isinstance(message, kind) and name == "site-07" and asked == kind.__name__.lower():
            said.append(message.header.refusal)
        return message

    idle.tamper = tamper
    if kind is Train:
        assert set(idle.round().dropped) == {"site-07"}
    elif kind is Unmask:
        assert set(idle.round().recovered) == {"site-07"}
    else:
        with pytest.raises(PeerError):
            idle.round()
    (refusal,) = said
    assert refusal.kind == "PeerError"
    assert re.search(words, refusal.message), refusal.message


@pytest.mark.parametrize("seed", ["22" * 31, "xy" * 32, ""])
def test_a_site_with_a_malformed_seed_is_left_out(idle, seed):
    def tamper(kind, name, message):
        if isinstance(message, Drawn) and name == "site-05":
            return replace(message, header=message.header.model_copy(update={"seed": seed}))
        return message

    idle.tamper = tamper
    assert idle.round().dropped == {"site-05": "the seed of 'site-05' is malformed"}


def test_a_site_that_did_not_draw_it_is_no_neighbour(idle):
    """A coordinator has to find a seed for each site that it puts around another."""

    def tamper(kind, name, message):
        if isinstance(message, Drawn) and name == "site-05":
            return replace(message, header=message.header.model_copy(update={"seed": "22" * 32}))
        return message

    idle.tamper = tamper
    outcome = idle.round()
    # It is told of neighbours that a seed drew which is not its own.
    assert set(outcome.dropped) == {"site-05"}


@pytest.mark.parametrize(
    ("allow", "words"),
    [
        ({"colluders": 2}, r"allow for 1 of 12 sites in league.*expects 2.*allow.colluders = 2"),
        ({"colluding_share": 0.2}, r"allow for 1 of 12.*expects 2 \(allow.colluding_share = 0.2"),
        ({"lost_share": 0.05}, r"encryption.lost_share is 0.1, and allow.lost_share 0.05"),
    ],
    ids=["colluders", "share", "lost"],
)
def test_masks_that_protect_against_less_than_a_site_asks_for_are_refused(
    federation, tmp_path, allow, words
):
    data = {f"site-{i:02}": records(6, seed=i) for i in range(SITES)}
    config = federation.config
    rounds = config.rounds.model_copy(update={"min_sites": 5})
    config = config.model_copy(update={"rounds": rounds})
    careful = build(tmp_path / "careful", config, data, policy(config, **allow))
    with pytest.raises(RefusedError, match=words):
        careful.round()


def test_a_graph_that_does_not_follow_from_the_configuration_is_refused(idle):
    with pytest.raises((PeerError, RefusedError), match="who shares masks with whom"):
        idle.round(neighbours=1, missing=1)
