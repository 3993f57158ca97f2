"""What the coordinator does with the mean of the sites' updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RoundsSection
from fedllm.errors import TrainingError
from fedllm.models.manifest import AdapterManifest
from fedllm.training.optimizers import Optimizer, Vector


@dataclass(frozen=True)
class _Part:
    """Values that are sent in the same rounds, and so have made the same number of steps."""

    prefix: str
    optimizer: Optimizer
    # For each turn in which they are sent, where they lie in what is sent then.
    places: dict[int, NDArray[np.int64]]


class ServerOptimizer:
    """Adaptive federated optimisation (Reddi et al. 2021), the update as minus a gradient.

    When sites send a plain gradient step of learning rate 1, as with distributed noise, this is
    the optimiser of central training. With "average" and learning rate 1 it is FedAvg. Where not
    all rounds send the same tensors, what is remembered of a tensor waits for the next that does.

    Parameters
    ----------
    rounds : RoundsSection
        Optimiser, learning rates and momentum.
    turns : AdapterManifest
        Of what sites send, in turn: round after round, and after the last the first again. They
        tell adapter values from head values.
    """

    def __init__(self, rounds: RoundsSection, *turns: AdapterManifest) -> None:
        self._turns = turns
        self._parts = [
            _part(rounds, turns, together) for together in sorted(set(_together(turns).values()))
        ]

    def apply(
        self,
        adapter: NDArray[np.float32],
        mean_update: NDArray[np.floating[Any]],
        number: int = 1,
    ) -> NDArray[np.float32]:
        """Return what was sent in round ``number`` as it is in the next, (P,) float32.

        Raises
        ------
        TrainingError
            If a vector has another length, or holds NaN or infinity.
        """
        turn = (number - 1) % len(self._turns)
        length = self._turns[turn].length
        for what, vector in (("adapter", adapter), ("mean update", mean_update)):
            if vector.shape != (length,):
                raise TrainingError(f"the {what} has shape {vector.shape}; expected ({length},)")
            if not np.isfinite(vector).all():
                raise TrainingError(f"the {what} holds NaN or infinity", "lower the learning rates")
        result = adapter.astype(np.float64)
        gradient = -np.asarray(mean_update, dtype=np.float64)
        for part in self._parts:
            if turn in part.places:
                places = part.places[turn]
                result[places] = part.optimizer.step(result[places], gradient[places])
        if not np.abs(result).max(initial=0.0) < np.finfo(np.float32).max:
            raise TrainingError("the new adapter is not finite", "lower rounds.learning_rate")
        return result.astype(np.float32)

    def renamed(
        self, directions: Callable[[Vector], Vector], squares: Callable[[Vector], Vector]
    ) -> None:
        """Write what is remembered in other coordinates, where all rounds send the same tensors.

        Parameters
        ----------
        directions, squares : callable
            Map the mean gradient (P,), and the mean of its squares.
        """
        if len(self._turns) == 1:
            self._parts[0].optimizer.renamed(directions, squares)

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays that a checkpoint must keep."""
        return {
            part.prefix + name: array
            for part in self._parts
            for name, array in part.optimizer.state().items()
        }

    def load(self, state: dict[str, NDArray[np.float64]]) -> None:
        """Go on from what `state` returned.

        Raises
        ------
        CheckpointError
            If it belongs to another adapter or is damaged.
        """
        for part in self._parts:
            part.optimizer.load(
                {
                    name.removeprefix(part.prefix): array
                    for name, array in state.items()
                    if name.startswith(part.prefix)
                }
            )


def _together(turns: tuple[AdapterManifest, ...]) -> dict[str, tuple[int, ...]]:
    """Return for each tensor in which turns it is sent."""
    sent: dict[str, tuple[int, ...]] = {}
    for turn, manifest in enumerate(turns):
        for segment in manifest.segments:
            sent[segment.name] = (*sent.get(segment.name, ()), turn)
    return sent


def _part(
    rounds: RoundsSection, turns: tuple[AdapterManifest, ...], together: tuple[int, ...]
) -> _Part:
    sent = _together(turns)
    tensors = AdapterManifest.of(
        (s.name, s.shape, s.group) for s in turns[together[0]].segments if sent[s.name] == together
    )
    head = rounds.head_learning_rate
    rates = tensors.per_value(rounds.learning_rate, rounds.learning_rate if head is None else head)
    kind = "sgd" if rounds.optimizer == "average" else rounds.optimizer
    # One part alone has the names that it always had.
    prefix = "" if len(turns) == 1 else "".join(f"{turn + 1}." for turn in together)
    return _Part(
        prefix,
        Optimizer(kind, rates, rounds.momentum, [segment.shape for segment in tensors.segments]),
        {turn: turns[turn].places(tensors) for turn in together},
    )
