"""An adapter that comes with the one that the run started from, which losses compare it with.

Where ``model.start`` names an earlier run, its adapter is the coordinator's alone. So it goes down
with every order, behind the adapter of the round: the signed statement binds both, a checkpoint
holds both, and a site that is restarted, or comes late, needs nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters.method import AdapterMethod, Floats, Moments, Step, Vector
from fedllm.models.manifest import AdapterManifest
from fedllm.models.shared import SharedModel

_FIRST = "start."


class ReferringAdapter(AdapterMethod):
    """Another method's adapter, and behind it the one of the run's start.

    Parameters
    ----------
    inner : AdapterMethod
        How the model is adapted.
    """

    def __init__(self, model: SharedModel, number: int, inner: AdapterMethod) -> None:
        super().__init__(model, number)
        self._inner = inner

    @property
    def trained(self) -> AdapterManifest:
        """What the inner method trains."""
        return self._inner.trained

    @property
    def down(self) -> AdapterManifest:
        """What the inner method sends, twice: of now, and of the start."""
        own = [(s.name, s.shape, s.group) for s in self._inner.down.segments]
        # A name that sorts behind them all.
        last = max(name for name, _, _ in own)
        first = [(f"{last}~{_FIRST}{name}", shape, group) for name, shape, group in own]
        return AdapterManifest.of([*own, *first])

    @property
    def own(self) -> AdapterManifest:
        """What the inner method sends."""
        return self._inner.down

    @property
    def up(self) -> AdapterManifest:
        """What the inner method's sites send."""
        return self._inner.up

    def start(self) -> Vector:
        """Return the untrained adapter twice."""
        own = self._inner.start()
        return np.concatenate([own, own])

    def place(self, adapter: Vector) -> None:
        """Put an adapter and its start into the model; see the base class."""
        own, first = self._halves(adapter)
        self._inner.place(own)
        model, down = self._model, self._inner.down
        values = model.values(model.tensors)
        values[model.tensors.places(down)] = first
        model.reference.set(values)

    def held(self) -> Vector:
        """Return the adapter that the model holds, and the start that it is compared with."""
        places = self._model.tensors.places(self._inner.down)
        return np.concatenate([self._inner.held(), self._model.reference.values[places]])

    def upward(self, change: NDArray[Floats]) -> NDArray[Floats]:
        """Return what the inner method's sites send."""
        return self._inner.upward(change)

    def next(self, adapter: Vector, mean: NDArray[np.floating[Any]], step: Step) -> Vector:
        """Move the adapter; its start stays."""
        own, first = self._halves(adapter)
        return np.concatenate([self._inner.next(own, mean, step), first])

    def direction(self, moments: Moments, before: Vector, after: Vector) -> Moments:
        """Return a direction as the inner method does."""
        return self._inner.direction(moments, self._halves(before)[0], self._halves(after)[0])

    def squares(self, moments: Moments, before: Vector, after: Vector) -> Moments:
        """Return variances as the inner method does."""
        return self._inner.squares(moments, self._halves(before)[0], self._halves(after)[0])

    def _halves(self, adapter: Vector) -> tuple[Vector, Vector]:
        # Of another length it is refused by the inner method.
        half = len(adapter) - self._inner.down.length
        return adapter[: len(adapter) - half], adapter[len(adapter) - half :]
