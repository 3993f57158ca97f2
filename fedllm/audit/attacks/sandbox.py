"""A copy of a run on the auditor's own data: the same functions train, on nobody's records.

A sandbox is one site that stands for all of them: its noise is the whole noise, its update the
mean. So it shows what everyone who sees opened sums and the model can see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters import adapter_of, sent_in_turn
from fedllm.config import RunConfig
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record
from fedllm.errors import ConfigError
from fedllm.mechanisms import LocalSettings, mechanism_of
from fedllm.models.shared import SharedModel
from fedllm.privacy.accounting.events import Event, NonPrivate, PoissonGaussian
from fedllm.randomness import RandomStream
from fedllm.tasks import LearningTask, task_of
from fedllm.tasks.beginning import begin
from fedllm.training.local import GradientSource, Released, SiteDataset, train_locally
from fedllm.training.server_optimizer import ServerOptimizer

_SYLLABLES = ("ba", "ke", "li", "mo", "nu", "pra", "sto", "tri", "vel", "zon")


@dataclass(frozen=True)
class Sandbox:
    """A run's model and settings, without its records.

    Attributes
    ----------
    config : RunConfig
        What the run asks for.
    model : SharedModel
        With an adapter of its own.
    public : list of Record
        Of the run's public test file; made up when it has none.
    """

    config: RunConfig
    model: SharedModel
    public: list[Record]

    @property
    def task(self) -> LearningTask:
        """What the run trains for."""
        return task_of(self.config)

    def encode(self, records: list[Record]) -> EncodedDataset:
        """Turn records into what trains."""
        length = self.config.model.max_length
        return self.task.encode(records, self.model.tokenizer, length, self.model.labels)

    def made_up_record(self, stream: RandomStream, words: int = 8) -> Record:
        """Make a record that means nothing and occurs nowhere else."""
        return made_up_record(self.task, self.model.labels, stream, words)

    def reset(self) -> None:
        """Put the untrained adapter into the model."""
        method = adapter_of(self.model)
        method.place(method.start())

    def start_with(self, trained: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an untrained adapter (D,) but for what the first round trains, (P,)."""
        self.reset()
        self.model.set_adapter(trained)
        return adapter_of(self.model).held()

    def settings(self, units: int, config: RunConfig | None = None) -> LocalSettings:
        """Return what one round does, with the whole noise, chosen as a site chooses it."""
        mechanism = mechanism_of(config or self.config)
        noise = mechanism.needed_noise(units, 1, ())
        return mechanism.settings(units, noise)

    def drawn(self, settings: LocalSettings) -> float:
        """Return the probability that a unit is in at least one batch of the run."""
        steps = self.config.rounds.count * settings.steps
        return 1.0 - (1.0 - settings.sampling_rate) ** steps

    def events(self, settings: LocalSettings) -> list[Event]:
        """Return what training by these settings costs a unit."""
        if settings.noise_multiplier is None:
            return [NonPrivate()]
        steps = self.config.rounds.count * settings.steps
        return [PoissonGaussian(settings.sampling_rate, settings.noise_multiplier, steps)]

    def train(
        self,
        dataset: SiteDataset,
        settings: LocalSettings,
        heard: Callable[[int, NDArray[np.float32]], None],
        gradients: GradientSource | None = None,
        start: NDArray[np.float32] | None = None,
        released: Released | None = None,
    ) -> NDArray[np.float32]:
        """Run all rounds and return the last adapter, (D,) float32; the model keeps it.

        Parameters
        ----------
        heard : callable
            Called after each round with its number and the update (P,).
        gradients, released : callable, optional
            As in `train_locally`.
        start : ndarray, optional
            The first adapter (D,); the run's own when left out.
        """
        optimizer = ServerOptimizer(self.config.rounds, *sent_in_turn(self.model))
        method = adapter_of(self.model)
        adapter = method.start() if start is None else start
        for number in range(1, self.config.rounds.count + 1):
            method = adapter_of(self.model, number)
            method.place(adapter)
            result = train_locally(
                self.model,
                dataset,
                settings,
                RandomStream.secure(),
                RandomStream.secure(),
                gradients,
                released,
            )
            # A norm that moves goes on from where it was, as at a site.
            settings = replace(settings, clipping_norm=result.clipping_norm)
            mean = method.upward(result.update)
            adapter = method.advance(adapter, mean, optimizer)
            heard(number, result.update)
        method.place(adapter)
        return adapter


def open_sandbox(config: RunConfig, most_public: int, stream: RandomStream) -> Sandbox:
    """Load a run's model, and public records in random order.

    Raises
    ------
    ConfigError
        If the run protects whole sites: a sandbox has only one.
    FedllmError
        If the model or the public file cannot be read.
    """
    if config.unit == "site":
        raise ConfigError(
            "this run protects whole sites; canaries and secrets are single records or persons",
            "audit a run with privacy.unit = 'record'",
        )
    task = task_of(config)
    records = task.read_public(config.data)
    labels = task.labels(config.data, records)
    model = task.load_model(config, labels)
    begin(config, model)
    if records:
        public = [records[i] for i in stream.permutation(len(records))[:most_public]]
    else:
        public = [made_up_record(task, labels, stream) for _ in range(most_public)]
    return Sandbox(config, model, public)


def made_up_record(
    task: LearningTask, labels: tuple[str, ...], stream: RandomStream, words: int = 8
) -> Record:
    """Make a record that means nothing and occurs nowhere else."""
    return task.made_up(lambda count: made_up_words(stream, count), stream, labels, words)


def made_up_words(stream: RandomStream, count: int) -> str:
    """Make words out of syllables."""
    return " ".join(
        "".join(_SYLLABLES[i] for i in stream.below(len(_SYLLABLES), 3)) for _ in range(count)
    )
