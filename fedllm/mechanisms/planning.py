"""What a run will cost a site, before anyone trains."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from fedllm.config import RunConfig
from fedllm.mechanisms.choice import mechanism_of
from fedllm.mechanisms.local import rounded_size
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.adaptive import adaptive_epsilon
from fedllm.privacy.accounting.events import fold


@dataclass(frozen=True)
class PlannedCost:
    """What a whole run will cost each unit of a site.

    Attributes
    ----------
    epsilon : float
        In the eyes of those who see opened sums and the model; infinite without privacy.
    colluders_epsilon : float, optional
        In the eyes of everyone else colluding against the site, who know all noise but its
        own; None where it is the same.
    adaptive_epsilon : float, optional
        As ``epsilon``, at a site whose ceiling that is, whatever a coordinator chose the charges
        by; None without privacy. See `fedllm.privacy.accounting.adaptive`.
    """

    epsilon: float
    colluders_epsilon: float | None
    adaptive_epsilon: float | None


def planned_cost(config: RunConfig, units: int) -> PlannedCost:
    """Return what a run costs a site of ``units`` if no attempt of a round fails.

    Raises
    ------
    BudgetError
        If no noise keeps the run's epsilon.
    """
    # What discrete noise costs depends on the adapter's length by less than 1e-20.
    costs = mechanism_of(config).planned(rounded_size(units), length=1)
    seen = [event for cost in costs for event in cost.events]
    alone = [event for cost in costs for event in cost.alone or cost.events]
    delta = config.privacy.delta
    against_all = None if alone == seen else epsilon(alone, delta).value
    cost = epsilon(seen, delta).value
    chosen = adaptive_epsilon(fold(seen), delta, cost) if 0 < cost < inf else None
    return PlannedCost(cost, against_all, chosen)
