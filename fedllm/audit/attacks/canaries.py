"""Test a claimed epsilon by canaries: can anyone tell which were in the training data.

White-box canaries are gradients: each points along one coordinate of the adapter with all
the length that clipping allows, the strongest contribution that a unit can make. The
attacker sees every round's sum. Black-box canaries are records without sense; the attacker
sees the final model's losses. Both go through the functions that train in production
(`train_locally`), in a sandbox. `fedllm.audit.attacks.one_run` turns right guesses into a lower
bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedllm.audit.attacks.one_run import lower_bound
from fedllm.audit.attacks.results import CanaryAttack
from fedllm.audit.attacks.sandbox import Sandbox
from fedllm.data.encode import EncodedDataset
from fedllm.models.shared import SharedModel
from fedllm.privacy.dpsgd import Gradients, OuterProducts, per_sample_gradients
from fedllm.randomness import RandomStream
from fedllm.training.objectives import record_losses

Heard = Callable[[str, int, int], None]
_ROWS = 64
# In clipping norms: clipping must cut a canary, or it shows.
_LENGTH = 2.0
# What is left of a canary's true gradient: nothing to count, but training checks that every
# tensor is reached.
_TRACE = 1e-9


class CanaryDataset:
    """Canaries: in by heads, without effect by tails.

    The number of units does not depend on the coins, as differential privacy assumes here.
    """

    def __init__(self, inner: EncodedDataset, coins: NDArray[np.bool_]) -> None:
        self._inner = inner
        self.coins = coins
        self.units = inner.units
        self.number_of_units = inner.number_of_units
        self.one_record_each = inner.one_record_each

    def __len__(self) -> int:
        return len(self._inner)

    def batch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return a batch that also says which canary each row is."""
        canary = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return {**self._inner.batch(indices), "canary": canary}


@dataclass
class PlantedGradients:
    """Per-sample gradients in which each canary's row is a step along its own coordinate.

    Attributes
    ----------
    model : SharedModel
        Whose adapter the gradients belong to.
    coordinates : int64 array (m,)
        The coordinate of each canary; all different.
    coins : bool array (m,)
        A canary that is not in has next to no gradient.
    length : float
        Of a canary's gradient: the clipping norm or more.
    """

    model: SharedModel
    coordinates: NDArray[np.int64]
    coins: NDArray[np.bool_]
    length: float

    def __post_init__(self) -> None:
        self._rows = torch.empty(0, dtype=torch.int64)

    @contextmanager
    def listening(self) -> Any:
        """Hear which canaries are in the batch that the model works on."""

        def hear(module: nn.Module, arguments: tuple[dict[str, Tensor], ...]) -> None:
            self._rows = arguments[0]["canary"]

        handle = self.model.module.register_forward_pre_hook(hear)
        try:
            yield self
        finally:
            handle.remove()

    def __call__(
        self, parameters: Sequence[nn.Parameter], losses: Callable[[], Tensor]
    ) -> list[Gradients]:
        """Compute the true gradients, and put the canaries' in their places."""
        gradients = per_sample_gradients(parameters, losses)
        mine, planted = self._rows.numpy(), []
        for segment, gradient in zip(self.model.manifest.segments, gradients, strict=True):
            places = self.coordinates[mine] - segment.start
            inside = (places >= 0) & (places < segment.size) & self.coins[mine]
            planted.append(_plant(gradient, np.flatnonzero(inside), places[inside], self.length))
        return planted


def _plant(
    gradient: Gradients, rows: NDArray[np.int64], places: NDArray[np.int64], length: float
) -> Gradients:
    # Copies: a layer's bias shares its gradient's memory with its weight's.
    if isinstance(gradient, OuterProducts):
        backprops, activations = gradient.backprops * _TRACE, gradient.activations.clone()
        out, into = np.divmod(places, activations.shape[1])
        backprops[rows] = 0.0
        activations[rows] = 0.0
        backprops[rows, out] = length
        activations[rows, into] = 1.0
        return OuterProducts(backprops, activations)
    flat = gradient.flatten(1) * _TRACE
    flat[rows, places] = length
    return flat.reshape(gradient.shape)


def white_box(
    sandbox: Sandbox, canaries: int, confidence: float, stream: RandomStream, heard: Heard
) -> CanaryAttack:
    """Attack a private run's sums with gradient canaries.

    Parameters
    ----------
    canaries : int
        How many; at most one for each value of the adapter.
    confidence : float
        Of the bound.
    stream : RandomStream
        Flips the coins; ``RandomStream.secure()`` outside tests.
    heard : callable
        Called with a word, the round and the number of rounds.
    """
    model = sandbox.model
    canaries = min(canaries, model.manifest.length)
    coins = stream.uniform(canaries) < 0.5
    coordinates = np.sort(stream.permutation(model.manifest.length)[:canaries])
    # Canaries' own text does not matter, and short text is quick.
    short = sandbox.made_up_record(stream, words=2)
    dataset = CanaryDataset(sandbox.encode([short] * canaries), coins)
    settings = sandbox.settings(dataset.number_of_units)
    planted = PlantedGradients(model, coordinates, coins, _LENGTH * settings.clipping_norm)
    moved = np.zeros(canaries)

    def watch(number: int, update: NDArray[np.float32]) -> None:
        nonlocal moved
        moved = moved - update[coordinates]
        heard("gradient canaries", number, sandbox.config.rounds.count)

    # No value may be zero: it would cut off the gradients of others.
    start = (0.05 * stream.normal(model.manifest.length)).astype(np.float32)
    with planted.listening():
        sandbox.train(dataset, settings, watch, planted, start)
    # Values with a larger step size move further: compare in units of it.
    rates = model.manifest.per_value(settings.learning_rate, settings.head_learning_rate)
    return _attack("white-box", moved / rates[coordinates], coins, sandbox, confidence)


def black_box(
    sandbox: Sandbox, canaries: int, confidence: float, stream: RandomStream, heard: Heard
) -> CanaryAttack:
    """Attack the final model's losses with records that make no sense.

    Works for runs with and without privacy; arguments as in `white_box`.
    """
    coins = stream.uniform(canaries) < 0.5
    made = [sandbox.made_up_record(stream) for _ in range(canaries)]
    trained = [record for record, coin in zip(made, coins, strict=True) if coin]
    dataset = sandbox.encode(trained + sandbox.public)
    # What is left out counts as an empty unit, so that sampling does not depend on the coins.
    settings = sandbox.settings(canaries + len(sandbox.public))
    canary_set = sandbox.encode(made)
    sandbox.model.set_adapter(sandbox.model.initial)
    before = losses_of(sandbox.model, canary_set)

    def watch(number: int, update: NDArray[np.float32]) -> None:
        heard("loss canaries", number, sandbox.config.rounds.count)

    sandbox.train(dataset, settings, watch)
    return _attack(
        "black-box", before - losses_of(sandbox.model, canary_set), coins, sandbox, confidence
    )


def _attack(
    kind: str,
    scores: NDArray[np.float64],
    coins: NDArray[np.bool_],
    sandbox: Sandbox,
    confidence: float,
) -> CanaryAttack:
    bound = lower_bound(scores, coins, sandbox.config.privacy.delta, confidence)
    return CanaryAttack(
        kind=kind,
        canaries=bound.guesses.canaries,
        guesses=bound.guesses.made,
        right=bound.guesses.right,
        epsilon=bound.epsilon,
        epsilon_without_assumption=bound.epsilon_without_assumption,
        confidence=confidence,
    )


@torch.no_grad()
def losses_of(model: SharedModel, dataset: EncodedDataset) -> NDArray[np.float64]:
    """Return each record's loss, (N,), with the adapter that the model holds."""
    parts = [
        record_losses(model, dataset.batch(np.arange(start, min(start + _ROWS, len(dataset)))))
        for start in range(0, len(dataset), _ROWS)
    ]
    return torch.cat(parts).double().numpy()
