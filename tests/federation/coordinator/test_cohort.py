"""Who of those that take part is in a round."""

from __future__ import annotations

import pytest
from support.federation import small_config

from fedllm.errors import ConfigError
from fedllm.federation.coordinator.cohort import choose_cohort
from fedllm.federation.protocol.messages import CohortMember

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
