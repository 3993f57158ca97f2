"""Evaluation at the sites."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedllm.config.section import PositiveFloat, Section

_MOST_GROUPS, _LONGEST = 64, 100


class EvaluationSection(Section):
    """Evaluation on records that the sites hold out, summed through the encrypted channel.

    Attributes
    ----------
    every : int
        Rounds between two evaluations at the sites, and after the last one; 0 for none.
    holdout : float
        Part of each site's records (or persons) that this run does not train on. Runs of the same
        task and unit hold the same ones out, and all of a smaller share; others may train on them.
    epsilon : float
        Spent by all evaluations together, out of the run's ``privacy.epsilon``; a run
        without privacy sends exact sums.
    parts : {"label", "group"}, optional
        Tells quality by each label of a classification, or by each of ``groups``, beside the
        whole. Costs no epsilon; all sums have the square root of 2 times more noise.
    groups : list of str, optional
        The groups that are told, written exactly as sites' records have them in the column
        ``data.group`` of each site's policy; a record of another counts in the whole alone.
    """

    every: Annotated[int, Field(ge=0)] = 0
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    epsilon: PositiveFloat = 0.5
    parts: Literal["label", "group"] | None = None
    groups: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _parts_are_declared(self) -> Self:
        if self.parts is not None and not self.every:
            raise ValueError(
                "evaluation.parts tells what sites measure, and evaluation.every = 0 lets them "
                "measure nothing: set evaluation.every, or leave parts out"
            )
        if self.parts == "group" and not self.groups:
            raise ValueError(
                "evaluation.groups is missing: evaluation.parts = 'group' needs the names of the "
                'groups, such as groups = ["english", "german"]'
            )
        if self.groups is not None:
            self._groups_can_be_told()
        return self

    def _groups_can_be_told(self) -> None:
        groups = self.groups or ()
        if self.parts != "group":
            raise ValueError("evaluation.groups needs evaluation.parts = 'group'")
        if len(groups) > _MOST_GROUPS:
            raise ValueError(
                f"evaluation.groups has {len(groups)} names, and {_MOST_GROUPS} at most may be "
                "told: put small groups together"
            )
        for name in groups:
            if not name or name != name.strip() or len(name) > _LONGEST:
                raise ValueError(
                    f"evaluation.groups: {name!r} is empty, has white space around it or more "
                    f"than {_LONGEST} letters"
                )
            if groups.count(name) > 1:
                raise ValueError(f"evaluation.groups names {name!r} twice: leave one of them out")
