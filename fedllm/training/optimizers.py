"""Optimisers on one flat float64 vector, used by sites and by the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedllm.errors import CheckpointError
from fedllm.mechanisms.work import ADAM_BETA_1, ADAM_BETA_2
from fedllm.training.muon import orthogonal

Vector = NDArray[np.float64]
Kind = Literal["sgd", "momentum", "adam", "muon"]

ADAM_STABILITY = 1e-8


class Optimizer:
    """Gradient descent with one learning rate for each value.

    Parameters
    ----------
    kind : {"sgd", "momentum", "adam", "muon"}
        "momentum" is heavy-ball momentum (Polyak 1964); "adam" is Kingma and Ba (2015); "muon" is
        that of `fedllm.training.muon`.
    learning_rates : ndarray
        (P,) float64.
    momentum : float
        Decay of the mean gradient; beta 1 of Adam.
    shapes : sequence of tuple
        Of the tensors that the vector is made of, in order; "muon" alone needs them.
    """

    def __init__(
        self,
        kind: Kind,
        learning_rates: Vector,
        momentum: float = ADAM_BETA_1,
        shapes: Sequence[tuple[int, ...]] = (),
    ) -> None:
        self._kind = kind
        self._learning_rates = learning_rates
        self._momentum = momentum
        self._shapes = tuple(shapes)
        self._steps = 0
        self._mean = np.zeros_like(learning_rates)
        self._square = np.zeros_like(learning_rates)

    def step(self, vector: Vector, gradient: Vector) -> Vector:
        """Return ``vector`` after one step against ``gradient``; all (P,) float64."""
        self._steps += 1
        if self._kind == "sgd":
            return vector - self._learning_rates * gradient
        if self._kind == "momentum":
            self._mean = self._momentum * self._mean + gradient
            return vector - self._learning_rates * self._mean
        self._mean = self._momentum * self._mean + (1 - self._momentum) * gradient
        if self._kind == "muon":
            return vector - self._learning_rates * self._in_all_directions()
        self._square = ADAM_BETA_2 * self._square + (1 - ADAM_BETA_2) * gradient**2
        mean = self._mean / (1 - self._momentum**self._steps)
        square = self._square / (1 - ADAM_BETA_2**self._steps)
        return vector - self._learning_rates * mean / (np.sqrt(square) + ADAM_STABILITY)

    def _in_all_directions(self) -> Vector:
        """Return the mean gradient (P,), each tensor's singular values made alike."""
        ends = np.cumsum([prod(shape) for shape in self._shapes])
        parts = np.split(self._mean, ends[:-1])
        tensors = (part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True))
        return np.concatenate([orthogonal(tensor).ravel() for tensor in tensors])

    def renamed(
        self, directions: Callable[[Vector], Vector], squares: Callable[[Vector], Vector]
    ) -> None:
        """Write the mean gradient (P,), and the mean of squares, in other coordinates."""
        self._mean, self._square = directions(self._mean), squares(self._square)

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return a copy of what a resumed run needs, as arrays."""
        return {
            "steps": np.array([self._steps], dtype=np.float64),
            "mean": self._mean.copy(),
            "square": self._square.copy(),
        }

    def load(self, state: dict[str, NDArray[np.float64]]) -> None:
        """Go on from what `state` returned.

        Raises
        ------
        CheckpointError
            If an array is missing, of another length, or not finite.
        """
        shapes = {"steps": (1,), "mean": self._mean.shape, "square": self._square.shape}
        for name, shape in shapes.items():
            if name not in state or state[name].shape != shape:
                raise CheckpointError(
                    f"the optimiser's state has no array {name!r} of shape {shape}",
                    "resume with the run.toml that made the checkpoint",
                )
            if not np.isfinite(state[name]).all():
                raise CheckpointError(f"the optimiser's state {name!r} holds NaN or infinity")
        self._steps = int(state["steps"][0])
        self._mean = state["mean"].astype(np.float64)
        self._square = state["square"].astype(np.float64)
