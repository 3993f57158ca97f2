"""The three spaces of an adapter, and the maps between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedllm.models.manifest import AdapterManifest
from fedllm.models.shared import SharedModel

Vector = NDArray[np.float32]
Floats = TypeVar("Floats", bound=np.floating[Any])
# One step of the coordinator's optimiser in the space of what comes up: where it stands (U,), the
# opened mean (U,), where it goes (U,).
Step = Callable[[Vector, NDArray[np.floating[Any]]], Vector]
Moments = NDArray[np.float64]


class CoordinatorOptimizer(Protocol):
    """What makes a step of an opened mean; see `fedllm.training.server_optimizer`."""

    def apply(self, adapter: Vector, mean_update: NDArray[np.floating[Any]], number: int) -> Vector:
        """Take the step of round ``number``."""

    def renamed(
        self, directions: Callable[[Moments], Moments], squares: Callable[[Moments], Moments]
    ) -> None:
        """Write what is remembered of earlier rounds in other coordinates."""


class AdapterMethod(ABC):
    """How one model is adapted in one round; has no state but the model.

    The round is blind: what is opened is a sum over sites, and each site's part is only known to
    be small. So the way up must be linear. It must not lengthen a vector either, nor raise its
    largest value: clipping, noise and bounds are counted on what is trained, and hold for what
    leaves.

    Parameters
    ----------
    model : SharedModel
        Its trained tensors are what local steps move.
    number : int
        Of the round, from 1, as its signed statement says it: a method that does not do the same
        in every round goes by that alone.
    """

    def __init__(self, model: SharedModel, number: int = 1) -> None:
        self._model = model
        self._number = number

    @property
    def trained(self) -> AdapterManifest:
        """Layout of what local steps move: the model's trained tensors, T values."""
        return self._model.manifest

    @property
    @abstractmethod
    def down(self) -> AdapterManifest:
        """Layout of what the coordinator keeps and sends, D values."""

    @property
    def own(self) -> AdapterManifest:
        """Layout of the adapter itself: of what goes down, without what comes behind it."""
        return self.down

    @property
    @abstractmethod
    def up(self) -> AdapterManifest:
        """Layout of what a site sends, U values."""

    @abstractmethod
    def start(self) -> Vector:
        """Return the adapter (D,) from which every run starts; the same at all parties."""

    @abstractmethod
    def place(self, adapter: Vector) -> None:
        """Put an adapter (D,) into the model, and have it train what this round trains.

        Raises
        ------
        TrainingError
            If it has another length, or holds NaN or infinity.
        """

    def held(self) -> Vector:
        """Return the adapter (D,) that the model holds: what `place` put there."""
        return self._model.values(self.down)

    @abstractmethod
    def upward(self, change: NDArray[Floats]) -> NDArray[Floats]:
        """Return what a site sends (U,) of a change or a gradient (T,) of the trained tensors.

        Linear; neither the L2 norm nor the largest absolute value grows.
        """

    @abstractmethod
    def next(self, adapter: Vector, mean: NDArray[np.floating[Any]], step: Step) -> Vector:
        """Return the adapter (D,) of the next round.

        Parameters
        ----------
        adapter : float32 array (D,)
            Of this round.
        mean : float array (U,)
            Mean of what the sites sent.
        step : callable
            The coordinator's optimiser, over `up`.

        Raises
        ------
        TrainingError
            If a vector has another length, or something is not finite.
        """

    def direction(self, moments: Moments, before: Vector, after: Vector) -> Moments:
        """Return a direction (U,) in the coordinates of another adapter.

        Parameters
        ----------
        moments : float64 array (U,)
            A way that what comes up may go from ``before``.
        before, after : float32 arrays (D,)
            The adapter of this round, and of the next.
        """
        return moments

    def squares(self, moments: Moments, before: Vector, after: Vector) -> Moments:
        """Return variances (U,) along the coordinates of another adapter; see `direction`."""
        return moments

    def advance(
        self, adapter: Vector, mean: NDArray[np.floating[Any]], optimizer: CoordinatorOptimizer
    ) -> Vector:
        """Return the adapter (D,) of the next round, and let the optimiser remember in its terms.

        Errors as in `next`.
        """
        after = self.next(adapter, mean, partial(optimizer.apply, number=self._number))
        optimizer.renamed(
            partial(self.direction, before=adapter, after=after),
            partial(self.squares, before=adapter, after=after),
        )
        return after
