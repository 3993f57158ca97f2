"""Test a claimed epsilon by canaries: can anyone tell which were in the training data.

White-box canaries are gradients: each points along one coordinate of what a round trains (one in
each half, where halves take turns) with all the length that clipping allows, the strongest
contribution that a unit can make. The attacker sees every step's noised sum, before an optimiser
makes a step of it, and every round's update. Black-box canaries are records of tokens that occur
nowhere else; the attacker sees the final model's losses. Both go through the functions that train
in production (`train_locally`), in a sandbox. `fedllm.audit.attacks.one_run` turns right guesses
into a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedllm.adapters import sent_in_turn
from fedllm.audit.attacks.new_tokens import chosen, with_new_tokens
from fedllm.audit.attacks.one_run import canaries_needed, largest_bound, lower_bound
from fedllm.audit.attacks.results import CanaryAttack
from fedllm.audit.attacks.sandbox import Sandbox
from fedllm.data.encode import EncodedDataset
from fedllm.mechanisms import LocalSettings
from fedllm.models.manifest import AdapterManifest
from fedllm.models.prefix import Dataset
from fedllm.models.shared import SharedModel
from fedllm.privacy.dpsgd import Gradients, OuterProducts
from fedllm.randomness import RandomStream
from fedllm.training.local import gradients_of
from fedllm.training.objectives import record_losses

Heard = Callable[[str, int, int], None]
Kind = Literal["white-box", "black-box"]
_ROWS = 64
# In clipping norms: clipping must cut a canary, or it shows; also where the norm grows.
_LENGTH = 1e6
# Scores of a canary that each attacker guesses by.
_VIEWS: dict[Kind, int] = {"white-box": 3, "black-box": 2}
# Canaries that are planted at least, and at most, where nobody says how many.
_LEAST, _MOST = 1000, 20_000
# Values of an adapter for each loss canary in one training; least and most canaries of one.
_VALUES_FOR_A_TEXT, _FEWEST_TEXTS, _MOST_TEXTS = 80, 25, 500
# Fillers: so many that no batch is empty, which training without noise would refuse.
_EXPECTED_AT_LEAST, _MOST_FILLERS = 12, 400
# Of a loss canary, before its tokens are replaced: short ones are learnt fastest.
_WORDS = 3
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

    def __len__(self) -> int:
        return len(self._inner)

    def batch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return a batch that also says which canary each row is."""
        canary = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return {**self._inner.batch(indices), "canary": canary}


@dataclass
class Places:
    """Where canaries stand in what a round trains.

    Attributes
    ----------
    turns : sequence of int64 arrays (m,)
        The coordinate of each canary, all different, for each kind of round that takes its turn.
    round : int
        How many rounds are over.
    """

    turns: Sequence[NDArray[np.int64]]
    round: int = 0

    @property
    def now(self) -> NDArray[np.int64]:
        """The coordinates (m,) in the round that is under way."""
        return self.turns[self.round % len(self.turns)]


@dataclass
class PlantedGradients:
    """Per-sample gradients in which each canary's row is a step along its own coordinate.

    Attributes
    ----------
    model : SharedModel
        Whose adapter the gradients belong to.
    places : Places
        The coordinate of each canary.
    coins : bool array (m,)
        A canary that is not in has next to no gradient.
    length : float
        Of a canary's gradient: the clipping norm or more.
    """

    model: SharedModel
    places: Places
    coins: NDArray[np.bool_]
    length: float

    def __post_init__(self) -> None:
        self._rows = torch.empty(0, dtype=torch.int64)

    @contextmanager
    def listening(self) -> Any:
        """Hear which canaries are in the batch that the model works on."""

        def hear(module: nn.Module, arguments: tuple[dict[str, Tensor], ...]) -> None:
            self._rows = arguments[0]["canary"]

        attach = self.model.attach

        def hear_attached(
            dataset: Dataset, indices: NDArray[np.int64], batch: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            # Losses of tokens are taken piece by piece, without one call of the whole network.
            self._rows = batch["canary"]
            return attach(dataset, indices, batch)

        handle = self.model.module.register_forward_pre_hook(hear)
        self.model.attach = hear_attached  # type: ignore[method-assign]
        try:
            yield self
        finally:
            handle.remove()
            del self.model.attach

    def __call__(
        self, parameters: Sequence[nn.Parameter], losses: Callable[[], Tensor]
    ) -> list[Gradients]:
        """Compute the true gradients, and put the canaries' in their places."""
        gradients = gradients_of(self.model)(parameters, losses)
        mine, planted = self._rows.cpu().numpy(), []
        for segment, gradient in zip(self.model.manifest.segments, gradients, strict=True):
            places = self.places.now[mine] - segment.start
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


@dataclass
class SeenSums:
    """What an attacker makes of the noised sums of a run, canary by canary.

    A canary that is in adds one clipping norm along its coordinate whenever a batch draws it,
    so the likelihood ratio of each step's value is known (Neyman and Pearson 1933), and the
    sum of its logarithms is the best there is to guess by.

    Attributes
    ----------
    places : Places
        The coordinate of each canary.
    settings : LocalSettings
        Sampling rate, noise and divisor, which are public.
    share : float
        Part of the noise that the attacker believes in; code that adds less is told best so.
    scores : float64 array (m,)
        Logarithm of the likelihood ratio so far.
    """

    places: Places
    settings: LocalSettings
    share: float

    def __post_init__(self) -> None:
        self.scores = np.zeros(len(self.places.now))

    def hear(self, gradient: NDArray[np.float64], clipping_norm: float) -> None:
        """Take in one step's noised mean (P,)."""
        settings = self.settings
        values = gradient[self.places.now] * (settings.expected_batch_size / clipping_norm)
        rate, noise = settings.sampling_rate, self.share * (settings.noise_multiplier or 1.0)
        inside = np.log(rate) + (values - 0.5) / noise**2
        self.scores += np.logaddexp(inside, np.log1p(-rate)) if rate < 1 else inside


def white_box(
    sandbox: Sandbox, canaries: int | None, confidence: float, stream: RandomStream, heard: Heard
) -> CanaryAttack:
    """Attack a private run's sums with gradient canaries.

    Parameters
    ----------
    canaries : int, optional
        How many, about; as many as can refute the claim when left out. At most one for each
        value of the adapter in one training; the others in further ones.
    confidence : float
        Of the bound.
    stream : RandomStream
        Flips the coins; ``RandomStream.secure()`` outside tests.
    heard : callable
        Called with a word, the round and the number of rounds.
    """
    groups = groups_of(sandbox, "white-box", canaries, confidence)
    return _attack(sandbox, groups, confidence, lambda: _white_box(sandbox, groups, stream, heard))


def _white_box(
    sandbox: Sandbox, groups: Groups, stream: RandomStream, heard: Heard
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Train once; return each canary's scores (3, m) in the attacker's views, and coins."""
    model, canaries, settings = sandbox.model, groups.size, groups.settings
    coins = stream.uniform(canaries) < 0.5
    turns = _trained_in_turn(model)
    places = Places([np.sort(stream.permutation(turn.length)[:canaries]) for turn in turns])
    # Canaries' own text does not matter, and short text is quick.
    short = sandbox.made_up_record(stream, words=2)
    dataset = CanaryDataset(sandbox.encode([short] * canaries), coins)
    planted = PlantedGradients(model, places, coins, _LENGTH * settings.clipping_norm)
    sums = [SeenSums(places, settings, share) for share in (1.0, 0.1)]
    rates = [t.per_value(settings.learning_rate, settings.head_learning_rate) for t in turns]
    moved = np.zeros(canaries)

    def hear(gradient: NDArray[np.float64], clipping_norm: float) -> None:
        for seen in sums:
            seen.hear(gradient, clipping_norm)

    def watch(number: int, update: NDArray[np.float32]) -> None:
        nonlocal moved
        # Values with a larger step size move further: compare in units of it.
        moved = moved - update[places.now] / rates[places.round % len(rates)][places.now]
        places.round = number
        heard("gradient canaries", number, sandbox.config.rounds.count)

    # No value may be zero: it would cut off the gradients of others.
    start = sandbox.start_with((0.05 * stream.normal(model.manifest.length)).astype(np.float32))
    with planted.listening():
        sandbox.train(dataset, settings, watch, planted, start, hear)
    return np.stack([*(seen.scores for seen in sums), moved]), coins


def _trained_in_turn(model: SharedModel) -> tuple[AdapterManifest, ...]:
    """Return the layouts of what rounds train, one after the other."""
    turns = sent_in_turn(model)
    # Where halves take turns, each is sent as it is trained.
    return turns if len(turns) > 1 else (model.manifest,)


def black_box(
    sandbox: Sandbox, canaries: int | None, confidence: float, stream: RandomStream, heard: Heard
) -> CanaryAttack:
    """Attack the final model's losses with records of tokens that occur nowhere else.

    So few in one training that a small adapter has room for all of them, and the others in
    further ones. Works for runs with and without privacy; arguments as in `white_box`.
    """
    groups = groups_of(sandbox, "black-box", canaries, confidence)
    return _attack(sandbox, groups, confidence, lambda: _black_box(sandbox, groups, stream, heard))


def _black_box(
    sandbox: Sandbox, groups: Groups, stream: RandomStream, heard: Heard
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Train once; return what the model's confidence in each canary gained, (2, m), and coins.

    Once as it is, and once beyond what the model gained for the label.
    """
    model, canaries = sandbox.model, groups.size
    coins = stream.uniform(canaries) < 0.5
    made = [sandbox.made_up_record(stream, _WORDS) for _ in range(canaries + groups.fillers)]
    made = [replace(record, unit=None) for record in made]
    everything = with_new_tokens(sandbox.encode(made), model.tokenizer, stream)
    canary_set = chosen(everything, np.arange(canaries))
    trained = np.append(coins, np.ones(groups.fillers, dtype=bool))
    # What is left out counts as an empty unit in the settings, so that sampling does not depend
    # on the coins.
    dataset = chosen(everything, np.flatnonzero(trained))
    sandbox.reset()
    before = sandbox.task.confidence(losses_of(model, canary_set))

    def watch(number: int, update: NDArray[np.float32]) -> None:
        heard("loss canaries", number, sandbox.config.rounds.count)

    sandbox.train(dataset, groups.settings, watch)
    after = sandbox.task.confidence(losses_of(model, canary_set))
    gained = after - before
    # What a label gained from all canaries together tells nothing of one.
    of_label = np.stack([canary_set.targets == t for t in canary_set.targets])
    return np.stack([gained, gained - of_label @ gained / of_label.sum(1)]), coins


@dataclass(frozen=True)
class Groups:
    """Canaries in trainings of their own, which are one mechanism together.

    Each canary is in one training only, so whatever (epsilon, delta) or trade-off curve holds
    for each training holds for what all of them give (parallel composition).

    Attributes
    ----------
    kind : {"white-box", "black-box"}
        The attack.
    count, size : int
        Trainings, and canaries of each.
    fillers : int
        Other records of each, so that no batch is empty.
    settings : LocalSettings
        Of each.
    """

    kind: Kind
    count: int
    size: int
    fillers: int
    settings: LocalSettings


def groups_of(sandbox: Sandbox, kind: Kind, canaries: int | None, confidence: float) -> Groups:
    """Divide an attack's canaries into trainings; arguments as in `white_box`."""
    wanted, views = _LEAST if canaries is None else canaries, _VIEWS[kind]
    privacy = sandbox.config.privacy
    most = min(turn.length for turn in _trained_in_turn(sandbox.model))
    if kind == "black-box":
        most = min(max(_FEWEST_TEXTS, most // _VALUES_FOR_A_TEXT), _MOST_TEXTS)
    while True:
        count = -(-wanted // most)
        size = -(-wanted // count)
        fillers = _fillers(sandbox, size) if kind == "black-box" else 0
        groups = Groups(kind, count, size, fillers, sandbox.settings(size + fillers))
        if canaries is not None or privacy.epsilon is None or wanted >= _MOST:
            return groups
        # A batch of fixed size draws the fewer of them the more there are.
        drawn = sandbox.drawn(groups.settings)
        needed = canaries_needed(privacy.epsilon, drawn, privacy.delta, confidence, views)
        if needed is not None and needed <= count * size:
            return groups
        wanted = min(needed or _MOST, _MOST)


def _fillers(sandbox: Sandbox, canaries: int) -> int:
    rate = sandbox.settings(canaries).sampling_rate
    lacking = ceil(_EXPECTED_AT_LEAST / rate - canaries / 2)
    return min(max(0, lacking), _MOST_FILLERS)


def _attack(
    sandbox: Sandbox,
    groups: Groups,
    confidence: float,
    train: Callable[[], tuple[NDArray[np.float64], NDArray[np.bool_]]],
) -> CanaryAttack:
    """Train each group, and guess all coins together."""
    parts = [train() for _ in range(groups.count)]
    scores = np.concatenate([part for part, _ in parts], axis=1)
    coins = np.concatenate([part for _, part in parts])
    privacy, drawn = sandbox.config.privacy, sandbox.drawn(groups.settings)
    views = _VIEWS[groups.kind]
    bound = lower_bound(scores, coins, privacy.delta, confidence, drawn)
    needed = None
    if privacy.epsilon is not None:
        needed = canaries_needed(privacy.epsilon, drawn, privacy.delta, confidence, views)
    return CanaryAttack(
        kind=groups.kind,
        canaries=bound.guesses.canaries,
        guesses=bound.guesses.made,
        right=bound.guesses.right,
        epsilon=bound.epsilon,
        epsilon_without_assumption=bound.epsilon_without_assumption,
        confidence=confidence,
        largest=largest_bound(len(coins), drawn, privacy.delta, confidence, views),
        needed=needed,
    )


@torch.no_grad()
def losses_of(model: SharedModel, dataset: EncodedDataset) -> NDArray[np.float64]:
    """Return each record's loss, (N,), with the adapter that the model holds."""
    parts = [
        record_losses(
            model,
            model.moved(dataset.batch(np.arange(start, min(start + _ROWS, len(dataset))))),
        )
        for start in range(0, len(dataset), _ROWS)
    ]
    return torch.cat(parts).double().cpu().numpy()
