"""Part of the adapter is trained and sent, and all of it goes down.

For methods whose frozen tensors are not what every party can compute for itself: they come with
each order, and the signed statement binds them with the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters.method import AdapterMethod, Floats, Step, Vector
from fedllm.models.manifest import AdapterManifest


class PartOfAdapter(AdapterMethod):
    """What comes up is what is trained: part of what goes down."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[str, ...]:
        """Which matrices are trained beside the head: "A", "B", "R"."""

    @property
    def down(self) -> AdapterManifest:
        """All of adapter and head."""
        return self._model.tensors

    @property
    def trained(self) -> AdapterManifest:
        """Some matrices of each layer's adapter, and the head."""
        return self._model.tensors.only(*self.kinds, "head")

    @property
    def up(self) -> AdapterManifest:
        """What is trained."""
        return self.trained

    def start(self) -> Vector:
        """Return the untrained adapter."""
        return self._model.untrained(self.down)

    def place(self, adapter: Vector) -> None:
        """Put an adapter into the model; see the base class."""
        self._model.put(self.down, adapter)
        self._model.train_only(self.trained)

    def upward(self, change: NDArray[Floats]) -> NDArray[Floats]:
        """Return the change as it is."""
        return change

    def next(self, adapter: Vector, mean: NDArray[np.floating[Any]], step: Step) -> Vector:
        """Take the coordinator's step where something was trained."""
        places = self.down.places(self.up)
        moved = adapter.copy()
        moved[places] = step(adapter[places], mean)
        return moved
