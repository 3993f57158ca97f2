"""How a run is private: one object for each way, which everyone asks and nobody looks inside of.

`mechanism_of` chooses it from a run's configuration, once. A site asks it for the noise of a
round, for the round's cost and for the contribution that leaves; the coordinator for the noise
to announce, for the bounds of updates and for what an honest sum stays within; planning, audits
and the report ask the same object. Evaluation at the sites has an object of its own,
`EvaluationSums`.
"""

from fedllm.mechanisms.choice import mechanism_of
from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.evaluation import EvaluationSums, UnitVector
from fedllm.mechanisms.local import rounded_size
from fedllm.mechanisms.mechanism import Contribution, Mechanism, SiteRound, Wording
from fedllm.mechanisms.planning import PlannedCost, planned_cost
from fedllm.mechanisms.sums import FALSE_ALARM, SumLaw
from fedllm.mechanisms.work import LocalResult, LocalSettings, LocalStatistics, LocalWork

__all__ = [
    "FALSE_ALARM",
    "Contribution",
    "Cost",
    "EvaluationSums",
    "LocalResult",
    "LocalSettings",
    "LocalStatistics",
    "LocalWork",
    "Mechanism",
    "PlannedCost",
    "SiteRound",
    "SumLaw",
    "UnitVector",
    "Wording",
    "mechanism_of",
    "planned_cost",
    "rounded_size",
]
