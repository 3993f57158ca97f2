"""Who of those that take part is in a round."""

from __future__ import annotations

import pytest
from support.federation import build, small_config

from fedllm.errors import ConfigError, PeerError
from fedllm.federation.coordinator.cohort import choose_cohort, gather_cohort
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.limits import MAX_SITES

MEMBERS = tuple(CohortMember(name=f"site-{i}", mask_key="", signature="") for i in range(10))


def test_all_sites_are_in_a_round_unless_a_part_is_asked_for(tmp_path):
    config = small_config(tmp_path, data={"sites": 10})
    assert choose_cohort(config, MEMBERS, 1, 1) == MEMBERS
    wide = small_config(tmp_path, data={"sites": 10}, rounds={"sites": 11})
    assert choose_cohort(wide, MEMBERS, 1, 1) == MEMBERS


def test_a_part_is_drawn_anew_for_each_attempt_and_everyone_has_a_turn(tmp_path):
    config = small_config(tmp_path, data={"sites": 10}, rounds={"sites": 4})
    drawn = [choose_cohort(config, MEMBERS, number, number) for number in range(1, 41)]
    assert all(
        len(cohort) == 4 and list(cohort) == sorted(cohort, key=lambda m: m.name)
        for cohort in drawn
    )
    assert len(set(drawn)) > 20
    assert {member for cohort in drawn for member in cohort} == set(MEMBERS)
    assert drawn[0] == choose_cohort(config, MEMBERS, 1, 1)
    assert choose_cohort(config, MEMBERS, 1, 2) != drawn[0]


def test_a_part_too_small_to_be_opened_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="sites = 1 is smaller than min_sites = 2"):
        small_config(tmp_path, rounds={"sites": 1, "min_sites": 2})


def test_more_sites_than_a_sum_holds_are_refused_unless_a_round_is_for_some_of_them(tmp_path):
    whole = small_config(tmp_path, data={"sites": 10})
    whole.require_room(MAX_SITES)
    with pytest.raises(ConfigError, match=f"{MAX_SITES + 1} sites take part") as caught:
        whole.require_room(MAX_SITES + 1)
    assert f"set rounds.sites = {MAX_SITES} or less" in caught.value.remedy
    some = {"data": {"sites": 10}, "rounds": {"sites": 10}}
    small_config(tmp_path, **some).require_room(MAX_SITES + 1)
    # All sites are in an evaluation.
    measured = small_config(tmp_path, **some, evaluation={"every": 1})
    with pytest.raises(ConfigError, match="take part"):
        measured.require_room(MAX_SITES + 1)
    for key in ("sites", "min_sites"):
        with pytest.raises(ConfigError, match=f"rounds.{key}"):
            small_config(tmp_path, data={"sites": 10**6}, rounds={key: MAX_SITES + 1})


class Asked:
    """Sites that answer in the given order, each from a node of its own name."""

    def __init__(self, federation, order: list[str]) -> None:
        self._federation, self._order, self.admitted = federation, order, []

    def join(self, request):
        answers = dict(self._federation.join(request))
        return [(name, answers[name]) for name in self._order]

    def admit(self, node: str, name: str) -> None:
        self.admitted.append((node, name))


def test_the_cohort_goes_by_name_whoever_answers_first(tiny_checkpoint, tmp_path):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    said: list[str] = []
    names = ["site-2", "site-0", "site-1"]
    sites = Asked(federation, [*names, "site-0"])
    found = gather_cohort(sites, federation.terms, 1, federation.roster, said.append)
    assert [member.name for member in found] == sorted(names)
    assert sites.admitted == [(name, name) for name in names]
    (words,) = said
    assert words.startswith("not taking part: site site-0: two nodes say that they are 'site-0'")


def test_a_coordinator_refuses_too_many_sites_before_it_asks_for_a_key(
    tiny_checkpoint, tmp_path, monkeypatch
):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    sites = Asked(federation, ["site-0", "site-1", "site-2"])
    monkeypatch.setattr("fedllm.config.run.MAX_SITES", 2)
    with pytest.raises(ConfigError, match="3 sites take part, and one sum holds at most 2"):
        gather_cohort(sites, federation.terms, 1, federation.roster, lambda text: None)


def test_as_many_sites_as_are_needed_are_enough_and_one_fewer_is_not(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), rounds={"min_sites": 2})
    federation = build(tmp_path, config)

    def gather(*names: str):
        sites = Asked(federation, list(names))
        return gather_cohort(sites, federation.terms, 1, federation.roster, lambda text: None)

    assert len(gather("site-0", "site-1")) == 2
    with pytest.raises(PeerError, match=r"1 sites take part; rounds.min_sites is 2"):
        gather("site-0")
