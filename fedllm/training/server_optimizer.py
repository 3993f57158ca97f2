"""What the coordinator does with the mean of the sites' updates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RoundsSection
from fedllm.errors import TrainingError
from fedllm.models.manifest import AdapterManifest
from fedllm.training.optimizers import Optimizer


class ServerOptimizer:
    """Adaptive federated optimisation (Reddi et al. 2021), the update as minus a gradient.

    When sites send a plain gradient step of learning rate 1, as with distributed noise, this is
    the optimiser of central training. With "average" and learning rate 1 it is FedAvg.

    Parameters
    ----------
    rounds : RoundsSection
        Optimiser, learning rates and momentum.
    manifest : AdapterManifest
        Of what sites send; tells adapter values from head values.
    """

    def __init__(self, rounds: RoundsSection, manifest: AdapterManifest) -> None:
        head = rounds.head_learning_rate
        rates = manifest.per_value(
            rounds.learning_rate, rounds.learning_rate if head is None else head
        )
        kind = "sgd" if rounds.optimizer == "average" else rounds.optimizer
        self._optimizer = Optimizer(kind, rates, momentum=rounds.momentum)
        self._length = manifest.length

    def apply(
        self, adapter: NDArray[np.float32], mean_update: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """Return the adapter of the next round, (P,) float32.

        Raises
        ------
        TrainingError
            If a vector has another length, or holds NaN or infinity.
        """
        for what, vector in (("adapter", adapter), ("mean update", mean_update)):
            if vector.shape != (self._length,):
                raise TrainingError(
                    f"the {what} has shape {vector.shape}; expected ({self._length},)"
                )
            if not np.isfinite(vector).all():
                raise TrainingError(f"the {what} holds NaN or infinity", "lower the learning rates")
        result = self._optimizer.step(
            adapter.astype(np.float64), -np.asarray(mean_update, dtype=np.float64)
        )
        if not np.abs(result).max(initial=0.0) < np.finfo(np.float32).max:
            raise TrainingError("the new adapter is not finite", "lower rounds.learning_rate")
        return result.astype(np.float32)

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays that a checkpoint must keep."""
        return self._optimizer.state()

    def load(self, state: dict[str, NDArray[np.float64]]) -> None:
        """Go on from what `state` returned.

        Raises
        ------
        CheckpointError
            If it belongs to another adapter or is damaged.
        """
        self._optimizer.load(state)
