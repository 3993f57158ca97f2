"""A cohort behind one digest: any part of it leads there, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.errors import PeerError
from fedllm.federation.protocol.cohorts import (
    CohortMember,
    CohortTree,
    cohort_digest,
    opened_digest,
)


def members(count):
    return [CohortMember(name=f"{i:03}", mask_key=f"{i:064x}", signature="") for i in range(count)]


@st.composite
def parts(draw):
    sites = draw(st.integers(1, 70))
    places = draw(st.sets(st.integers(0, sites - 1), min_size=1))
    return sites, draw(st.sampled_from(sorted(places))), dict.fromkeys(places, "")


@given(parts())
def test_every_part_of_a_cohort_leads_to_its_digest(part):
    sites, own, near = part
    found = CohortTree(members(sites)).open(own, near)
    assert [one.place for one in found.near] == sorted(near)
    assert opened_digest(found, sites) == cohort_digest(members(sites))
    # A tree of so many leaves is no higher, and what is known is not sent.
    assert len(found.siblings) <= len(near) * (sites - 1).bit_length()
    assert len(near) < sites or not found.siblings


@given(parts(), st.data())
def test_nothing_else_leads_there(part, data):
    sites, own, near = part
    found = CohortTree(members(sites)).open(own, near)
    which = data.draw(st.integers(0, len(found.near) - 1))
    one = found.near[which]
    other = one.model_copy(update={"member": one.member.model_copy(update={"units": 1})})
    changed = [*found.near[:which], other, *found.near[which + 1 :]]
    digest = cohort_digest(members(sites))
    assert opened_digest(found.model_copy(update={"near": tuple(changed)}), sites) != digest
    for siblings in (found.siblings[1:], (*found.siblings, "00" * 32)):
        if siblings != found.siblings:
            with pytest.raises(PeerError, match="lead to the digest"):
                opened_digest(found.model_copy(update={"siblings": siblings}), sites)
    with pytest.raises(PeerError, match="places"):
        opened_digest(found, max(near))
    moved = one.model_copy(update={"place": one.place + 1})
    if one.place + 1 < sites and one.place + 1 not in near:
        elsewhere = [*found.near[:which], moved, *found.near[which + 1 :]]
        try:
            told = opened_digest(found.model_copy(update={"near": tuple(elsewhere)}), sites)
        except PeerError:
            return
        assert told != digest


def test_a_cohort_that_is_longer_or_in_another_order_has_another_digest():
    three = members(3)
    digests = {cohort_digest(some) for some in (three, three[:2], three[::-1], members(4))}
    assert len(digests) == 4


@pytest.mark.parametrize("places", [(), (-1, 0), (1, 0), (0, 0), (0, 3)])
def test_places_are_those_of_the_cohort_in_order_and_each_once(places):
    found = CohortTree(members(3)).open(0, {1: "", 2: ""})
    near = tuple(
        one.model_copy(update={"place": place})
        for place, one in zip(places, found.near[: len(places)], strict=True)
    )
    with pytest.raises(PeerError, match="names places that the cohort does not have"):
        opened_digest(found.model_copy(update={"near": near}), 3)


@pytest.mark.parametrize("sibling", ["", "00" * 31, "00" * 33, "zz" * 32])
def test_siblings_are_digests(sibling):
    found = CohortTree(members(2)).open(0, {})
    assert opened_digest(found, 2) == cohort_digest(members(2))
    with pytest.raises(PeerError, match="does not lead to the digest of its cohort"):
        opened_digest(found.model_copy(update={"siblings": (sibling,)}), 2)


def test_a_site_is_told_of_itself_and_of_seeds_where_there_are_some():
    found = CohortTree(members(5)).open(3, {1: "ab"})
    assert found.place == 3
    assert [(one.place, one.member.name, one.seed) for one in found.near] == [
        (1, "001", "ab"),
        (3, "003", ""),
    ]
