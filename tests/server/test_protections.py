"""What a run says at its start of those who might put together what they have."""

from __future__ import annotations

import pytest
from support.federation import config_values

from fedllm.config import BudgetSection, RunConfig, SitePolicy, parse
from fedllm.mechanisms import planned_cost
from fedllm.privacy.accounting.words import epsilon_text
from fedllm_server.protections import against_all_others

SHARED = {
    "training": {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.1, "batch_size": 30},
    "rounds": {"count": 2, "min_sites": 3},
}


def config(**privacy) -> RunConfig:
    return parse(RunConfig, config_values("base", privacy=privacy, **SHARED), "test")


def test_shared_noise_without_a_ceiling_is_told_with_both_epsilons():
    run = config(epsilon=4.0, noise="distributed")
    cost = planned_cost(run, 30)
    assert cost.epsilon <= 4.0 < cost.colluders_epsilon
    (coordinator,), (simulated,) = against_all_others(run), against_all_others(run, SitePolicy())
    for words in (coordinator, simulated):
        assert f"everyone else together, other sites included, epsilon {shown(cost)}" in words
        assert "budget.colluders_epsilon" in words
    assert "no ceiling of these sites" in simulated
    assert "unless a site limits that" in coordinator


def shown(cost) -> str:
    return epsilon_text(cost.colluders_epsilon)


def test_a_ceiling_is_known_and_nothing_is_told():
    policy = SitePolicy(budget=BudgetSection(colluders_epsilon=90.0))
    assert against_all_others(config(epsilon=4.0, noise="distributed"), policy) == []


@pytest.mark.parametrize(
    "privacy", [{"epsilon": 4.0, "noise": "local"}, {"epsilon": None, "noise": "distributed"}]
)
def test_where_nobody_shares_noise_nothing_is_told(privacy):
    assert against_all_others(config(**privacy)) == []


def test_what_it_costs_does_not_depend_on_a_sites_size():
    run = config(epsilon=4.0, noise="distributed")
    assert planned_cost(run, 30) == planned_cost(run, 500)
