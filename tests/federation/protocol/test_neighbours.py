"""What a site is told of its cohort is checked once, and anew where anything is another."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.federation import own_draw

from fedllm.errors import PeerError
from fedllm.federation.protocol import neighbours
from fedllm.federation.protocol.cohorts import CohortTree, Neighbourhood, cohort_digest
from fedllm.federation.protocol.neighbours import (
    NeighbourhoodReader,
    Neighbourhoods,
    own_seed,
    read_neighbourhood,
)
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import make_member
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster

NAMES = ("anne", "bob", "carl")
PEOPLE = {name: Identity.generate(name) for name in (*NAMES, "authority")}
ROSTER = Roster(
    PEOPLE["authority"].public_bytes(), {name: PEOPLE[name].public_bytes() for name in NAMES}
)
TEXTS = ("plan", "key", "reveal_key", "config", "labels", "bounds", "model", "adapter")


def round_of(run, attempt, members):
    return RoundStatement(
        run=run,
        round=1,
        attempt=attempt,
        rounds=9,
        cohort=tuple(member.name for member in members),
        members=cohort_digest(members),
        min_sites=2,
        **dict.fromkeys(TEXTS, ""),
    )


def entries(run, names=NAMES):
    return [make_member(PEOPLE[name], "", run, 0) for name in names]


@pytest.fixture
def read(monkeypatch):
    """Read what anne is told, and return whose signatures were looked at."""
    checked = []
    right = neighbours.check_member

    def check(member, run, roster):
        checked.append(member.name)
        right(member, run, roster)

    monkeypatch.setattr(neighbours, "check_member", check)
    reader = NeighbourhoodReader(PEOPLE["anne"], ROSTER)

    def ask(run, attempt, members):
        checked.clear()
        statement = round_of(run, attempt, members)
        around = reader.read(Neighbourhoods(statement, members, {}).of("anne"), statement, "")
        assert sorted(around.others) == [m.name for m in members if m.name != "anne"]
        return list(checked)

    return ask


def test_a_signature_is_looked_at_once_a_run(read):
    assert read("one", 1, entries("one")) == [*NAMES]
    assert read("one", 2, entries("one")) == []
    assert read("one", 3, entries("one", ("anne", "carl"))) == []
    assert read("two", 1, entries("two")) == [*NAMES]
    assert read("one", 4, entries("one")) == [*NAMES]


def test_an_entry_of_another_run_or_with_another_signature_is_not_known(read):
    read("one", 1, entries("one"))
    forged = entries("one")
    forged[1] = forged[1].model_copy(update={"units": 7})
    with pytest.raises(PeerError, match="its mask key"):
        read("one", 2, forged)
    assert read("one", 3, entries("one")) == []
    with pytest.raises(PeerError, match="its mask key"):
        read("two", 1, [*entries("two", ("anne", "bob")), *entries("one", ("carl",))])


def test_what_was_refused_is_not_known_afterwards(read):
    forged = entries("one")
    forged[2] = forged[2].model_copy(update={"units": 7})
    for attempt in (1, 2):
        with pytest.raises(PeerError, match="its mask key"):
            read("one", attempt, forged)


def test_the_last_neighbourhood_is_known_and_no_other():
    reader = NeighbourhoodReader(PEOPLE["anne"], ROSTER)
    members = entries("one")
    first, second = round_of("one", 1, members), round_of("one", 2, members)
    told = Neighbourhoods(first, members, {}).of("anne")
    around = reader.read(told, first, "")
    assert around.own == members[0]
    assert around.drawn == ()
    assert reader.read(told, first, "") is around
    assert reader.read(told, second, "") is not around
    with pytest.raises(PeerError, match="another site's"):
        reader.read(told.model_copy(update={"place": 1}), second, "")
    with pytest.raises(PeerError, match="not that of the cohort"):
        larger = [make_member(PEOPLE[name], "", "one", 7) for name in NAMES]
        reader.read(told, round_of("one", 1, larger), "")


def test_what_many_sites_of_a_process_are_told_of_one_stands_in_memory_once():
    members, read = entries("one"), []
    statement = round_of("one", 1, members)
    for name in ("anne", "bob"):
        told = Neighbourhoods(statement, members, {}).of(name).model_dump_json()
        heard = Neighbourhood.model_validate_json(told)
        read.append(NeighbourhoodReader(PEOPLE[name], ROSTER).read(heard, statement, ""))
    assert read[0].others["carl"] is read[1].others["carl"]
    assert read[0].others["bob"] is read[1].own


LARGE = tuple(f"site-{i}" for i in range(8))


def identity(name):
    """Return the same keys each time, so that it is known who draws whom."""
    secret = hashlib.sha256(name.encode()).digest()
    return Identity(name, Ed25519PrivateKey.from_private_bytes(secret), secret)


MANY = {name: identity(name) for name in (*LARGE, "authority")}
MANY_ROSTER = Roster(
    MANY["authority"].public_bytes(), {name: MANY[name].public_bytes() for name in LARGE}
)


@pytest.fixture(scope="module")
def large():
    """A cohort in which each site draws two others: its statement, its entries and seeds."""
    members = [make_member(MANY[name], "", "one", 0) for name in LARGE]
    statement = round_of("one", 1, members).model_copy(update={"neighbours": 2, "missing": 1})
    seeds = {name: own_seed(MANY[name], "", statement).hex() for name in LARGE}
    return statement, members, seeds


def read_large(large, found, name="site-3"):
    return read_neighbourhood(found, large[0], MANY[name], "", MANY_ROSTER)


def opened(large, name, near):
    """Return what a site would be told if these places were around it."""
    statement, members, seeds = large
    told = {place: seeds[LARGE[place]] for place in near}
    return CohortTree(members).open(statement.cohort.index(name), told)


def test_each_site_is_around_those_that_it_drew_and_those_that_drew_it(large):
    statement, members, seeds = large
    made = Neighbourhoods(statement, members, seeds)
    drew = {name: own_draw(MANY[name], "", statement) for name in LARGE}
    for name in LARGE:
        around = read_large(large, made.of(name), name)
        drawn_by = {other for other in LARGE if name in drew[other]}
        assert around.drawn == drew[name]
        assert len(set(drew[name]) - {name}) == 2
        assert set(around.others) == set(drew[name]) | drawn_by
        assert around.own.name == name
        assert made.answering(name, LARGE) == list(drew[name])
        assert made.answering(name, drew[name][1:]) == list(drew[name][1:])
    complete = Neighbourhoods(round_of("one", 1, members), members, {})
    assert complete.answering("site-3", ("site-1", "site-3")) == ["site-1", "site-3"]


def test_who_has_no_seed_is_around_those_that_drew_it_alone(large):
    statement, members, seeds = large
    lost = own_draw(MANY["site-3"], "", statement)[0]
    without = {name: seed for name, seed in seeds.items() if name != lost}
    made = Neighbourhoods(statement, members, without)
    around = read_large(large, made.of("site-3"))
    assert lost in around.others
    with pytest.raises(PeerError, match="the seed of 'site-1' is malformed"):
        Neighbourhoods(statement, members, {"site-1": seeds["site-1"] + "00"})


def test_only_those_that_drew_a_site_are_put_around_it(large):
    statement, _, seeds = large
    right = {one.place for one in Neighbourhoods(*large).of("site-3").near}
    stranger = next(place for place in range(len(LARGE)) if place not in right)
    with pytest.raises(PeerError, match=f"'site-{stranger}' did not draw this site, and stands"):
        read_large(large, opened(large, "site-3", {*right, stranger}))
    for left_out in own_draw(MANY["site-3"], "", statement):
        near = right - {LARGE.index(left_out)}
        with pytest.raises(PeerError, match="leaves out neighbours of this site"):
            read_large(large, opened(large, "site-3", near))
    told = opened(large, "site-3", right)
    mine = [
        one.model_copy(update={"seed": seeds["site-4"]}) if one.place == 3 else one
        for one in told.near
    ]
    with pytest.raises(PeerError, match="does not follow from this site's own seed"):
        read_large(large, told.model_copy(update={"near": tuple(mine)}))


@pytest.mark.parametrize("seed", ["", "00" * 31, "00" * 33, "zz" * 32])
def test_a_seed_that_is_none_is_its_sites(large, seed):
    made = Neighbourhoods(*large)
    name = next(
        name
        for name in LARGE
        if len(made.of(name).near) > 1 + len(own_draw(MANY[name], "", large[0]))
    )
    told, drawn = made.of(name), own_draw(MANY[name], "", large[0])
    other = next(one for one in told.near if one.member.name not in (name, *drawn))
    near = [one.model_copy(update={"seed": seed}) if one == other else one for one in told.near]
    with pytest.raises(PeerError, match=f"the seed of '{other.member.name}' is malformed"):
        read_large(large, told.model_copy(update={"near": tuple(near)}), name)


def test_signatures_are_checked_of_those_that_a_site_counts_on(large, monkeypatch):
    checked = []
    monkeypatch.setattr(neighbours, "check_member", lambda member, *_: checked.append(member.name))
    reader, made = NeighbourhoodReader(MANY["site-3"], MANY_ROSTER), Neighbourhoods(*large)
    drawn = own_draw(MANY["site-3"], "", large[0])
    reader.read(made.of("site-3"), large[0], "")
    assert sorted(checked) == sorted(["site-3", *drawn])
    again = large[0].model_copy(update={"attempt": 2})
    seeds = {name: own_seed(MANY[name], "", again).hex() for name in LARGE}
    known = {"site-3", *drawn}
    checked.clear()
    reader.read(Neighbourhoods(again, large[1], seeds).of("site-3"), again, "")
    assert set(checked) == set(own_draw(MANY["site-3"], "", again)) - known != set()


def test_names_of_the_cohort_are_those_of_its_entries(large):
    """The digest is of the entries alone; the statement has the names beside them."""
    statement, members, _ = large
    for cohort in ((*LARGE[:6], LARGE[7], "site-9"), (*LARGE[:7], "site-9")):
        other = statement.model_copy(update={"cohort": cohort, "neighbours": 0, "missing": 0})
        told = Neighbourhoods(round_of("one", 1, members), members, {}).of("site-3")
        with pytest.raises(PeerError, match="a neighbourhood is not that of the cohort"):
            read_neighbourhood(told, other, MANY["site-3"], "", MANY_ROSTER)
    left = statement.model_copy(update={"cohort": LARGE[:3]})
    with pytest.raises(PeerError, match="this site is not in the cohort"):
        read_large((left,), opened(large, "site-3", {1}))
