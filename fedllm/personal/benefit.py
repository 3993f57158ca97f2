"""What a site gains by the federation: its own model, the shared one, and that with its own layer.

All three are measured on records of the site that none of them was trained on
(`fedllm.personal.held_out` tells whether that is so).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fedllm.adapters import adapter_of
from fedllm.data.encode import EncodedDataset
from fedllm.models.shared import SharedModel
from fedllm.personal.own_layer import OwnLayer, fit_alone, fit_own_layer
from fedllm.tasks import task_of
from fedllm.tasks.scores import unit_vectors
from fedllm.training.evaluate import unit_scores

# Two-sided, 95 %, of a normal distribution.
_Z = 1.959963984540054
_FEWEST_HELD = 2


class Difference(BaseModel):
    """A mean difference of paired scores and its 95 % interval by the normal distribution."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """Return that of paired differences (U,)."""
        mean, spread = float(values.mean()), float(values.std(ddof=1)) / sqrt(len(values))
        return cls(mean=mean, low=mean - _Z * spread, high=mean + _Z * spread)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return (self.high - self.low) / (2 * _Z)


class SiteBenefit(BaseModel):
    """One site's comparison, of the mean score of its held-out units.

    Attributes
    ----------
    trained, held_out : int
        Records trained on; units measured on.
    alone, shared, own : float
        The measure of the site's own model, the shared one, and the shared one with its own layer;
        each unit's is within the limits of `fedllm.tasks.scores`.
    own_over_shared, own_over_alone, shared_over_alone : Difference
        Positive where the first is the better one.
    epochs, blend : number
        Of the layer; see `OwnLayer`.
    """

    model_config = ConfigDict(frozen=True)

    site: str
    trained: int
    held_out: int
    alone: float
    shared: float
    own: float
    own_over_shared: Difference
    own_over_alone: Difference
    shared_over_alone: Difference
    epochs: int
    blend: float

    @property
    def over_the_better(self) -> Difference:
        """How much own layer and shared model are better than the better of the other two."""
        return min(self.own_over_shared, self.own_over_alone, key=lambda one: one.mean)


class Benefit(BaseModel):
    """The comparison at one site, or at all sites of a simulation.

    Attributes
    ----------
    run, run_id : str
        What people call the run, and its identifier.
    measure : str
        What is compared.
    better : {"higher", "lower"}
        Which is the better value.
    sites : tuple of SiteBenefit
        In order of their names.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    run_id: str
    measure: str
    better: Literal["higher", "lower"]
    sites: tuple[SiteBenefit, ...]

    @property
    def over_the_better(self) -> Difference:
        """The mean over sites; its interval takes sites as given and their records as drawn."""
        found = [site.over_the_better for site in self.sites]
        mean = float(np.mean([one.mean for one in found]))
        error = sqrt(sum(one.error**2 for one in found)) / len(found)
        return Difference(mean=mean, low=mean - _Z * error, high=mean + _Z * error)


def compare(
    model: SharedModel,
    adapter: NDArray[np.float32],
    training: EncodedDataset,
    held_out: EncodedDataset,
    site: str,
    heard: Callable[[], None] = lambda: None,
) -> tuple[SiteBenefit, OwnLayer]:
    """Train what is a site's own and compare, at that site.

    Parameters
    ----------
    model : SharedModel
        Of the run; holds the shared adapter with all that is trained at the end.
    adapter : float32 array (D,)
        The shared adapter.
    training, held_out : EncodedDataset
        The site's records; of ``held_out`` the shared model has seen none.

    Raises
    ------
    ValueError
        If fewer than two units are held out.
    """
    method = adapter_of(model)
    method.place(method.start())
    alone = fit_alone(model, training, heard)
    of_alone = _scored(model, alone, held_out)
    method.place(adapter)
    own = fit_own_layer(model, training, heard)
    of_own = _scored(model, own, held_out)
    of_shared = unit_scores(model, held_out)
    column, sign = _measured(model)
    if len(of_shared) < _FEWEST_HELD:
        raise ValueError("fewer than two units are held out")
    one, two, three = (_bounded(model, s, column) for s in (of_alone, of_shared, of_own))
    return (
        SiteBenefit(
            site=site,
            trained=len(training),
            held_out=len(two),
            alone=float(one.mean()),
            shared=float(two.mean()),
            own=float(three.mean()),
            own_over_shared=Difference.of(sign * (three - two)),
            own_over_alone=Difference.of(sign * (three - one)),
            shared_over_alone=Difference.of(sign * (two - one)),
            epochs=own.epochs,
            blend=own.blend,
        ),
        own,
    )


def benefit_of(run: str, run_id: str, model: SharedModel, sites: Sequence[SiteBenefit]) -> Benefit:
    """Put the sites' comparisons together."""
    column, sign = _measured(model)
    measure = task_of(model).site_scores[column].name
    better: Literal["higher", "lower"] = "higher" if sign > 0 else "lower"
    return Benefit(run=run, run_id=run_id, measure=measure, better=better, sites=tuple(sites))


def _scored(model: SharedModel, layer: OwnLayer, held_out: EncodedDataset) -> NDArray[np.float64]:
    with model.unchanged():
        model.set_adapter(model.adapter() + layer.change)
        return unit_scores(model, held_out)


def _bounded(model: SharedModel, values: NDArray[np.float64], column: int) -> NDArray[np.float64]:
    """Return one score of each unit (U,) as an evaluation at the sites counts it.

    No number is the worst there is: a model that breaks off at a record is not the better for it.
    """
    scores = task_of(model).site_scores
    return unit_vectors(scores, values)[:, 1 + column] * scores[column].limit


def _measured(model: SharedModel) -> tuple[int, int]:
    """Return which of the task's scores is compared, and 1 where more is better, else -1."""
    task = task_of(model)
    return task.site_scores.index(task.compared), -1 if task.compared.worst else 1
