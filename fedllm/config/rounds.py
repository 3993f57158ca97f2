"""The rounds of a run and the coordinator's step in each."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedllm.config.section import PositiveFloat, PositiveInt, Section
from fedllm.limits import MAX_SITES


class RoundsSection(Section):
    """The federation's rounds and the optimiser at the coordinator.

    Attributes
    ----------
    count : int
        Rounds of the run, at most 99,999.
    min_sites : int
        A round with fewer finished sites fails; at least 2, since the sum of one site's update
        is that update; at most 16,384.
    sites : int, optional
        So many of the sites that take part, drawn anew each time, are in a round; all when
        left out; at most 16,384. Saves time and traffic; no privacy is claimed for the draw,
        which the coordinator knows.
    optimizer : {"average", "momentum", "adam", "muon"}
        What is done with the mean of the sites' updates (Reddi et al. 2021). "muon" steps equally
        far in all directions of a matrix (Jordan et al. 2024).
    learning_rate : float
        Step size of that optimiser; 1 with "average" is FedAvg. With "muon" how far a value moves
        in a round (root mean square), as is about so with "adam".
    head_learning_rate : float, optional
        The same for the classification head; ``learning_rate`` when left out.
    momentum : float
        Decay of the mean update, of "momentum", "adam" and "muon".
    timeout_s : float
        How long a round waits for a site.
    evaluate_every : int
        Rounds between two evaluations on the public test file.
    rollback_rise : float
        Where an evaluation on the public test file gives a loss that is more than this above the
        best so far (nats), the run goes on from the last adapter that was not rolled back; 0 for
        never. What the rounds between cost stays charged.
    """

    # Five digits name a checkpoint.
    count: Annotated[int, Field(ge=1, le=99_999)] = 10
    min_sites: Annotated[int, Field(ge=2, le=MAX_SITES)] = 2
    sites: Annotated[int, Field(ge=1, le=MAX_SITES)] | None = None
    optimizer: Literal["average", "momentum", "adam", "muon"] = "average"
    learning_rate: PositiveFloat = 1.0
    head_learning_rate: PositiveFloat | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    timeout_s: PositiveFloat = 3600.0
    evaluate_every: PositiveInt = 1
    rollback_rise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _a_round_can_be_opened(self) -> Self:
        if self.sites is not None and self.sites < self.min_sites:
            raise ValueError(
                f"sites = {self.sites} is smaller than min_sites = {self.min_sites}: no round "
                "could be opened"
            )
        return self
