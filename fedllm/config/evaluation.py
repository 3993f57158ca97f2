"""Evaluation at the sites."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedllm.config.section import PositiveFloat, Section


class EvaluationSection(Section):
    """Evaluation on records that the sites hold out, summed through the encrypted channel.

    Attributes
    ----------
    every : int
        Rounds between two evaluations at the sites, and after the last one; 0 for none.
    holdout : float
        Part of each site's records (or persons) that is never trained on.
    epsilon : float
        Spent by all evaluations together, out of the run's ``privacy.epsilon``; a run
        without privacy sends exact sums.
    """

    every: Annotated[int, Field(ge=0)] = 0
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    epsilon: PositiveFloat = 0.5
