"""What every way of being private has to say and to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RunConfig
from fedllm.errors import BudgetError
from fedllm.mechanisms.bounds import update_bounds
from fedllm.mechanisms.calibrating import choose_noise_multiplier
from fedllm.mechanisms.cost import Cost, noise_shares
from fedllm.mechanisms.evaluation import EvaluationSums
from fedllm.mechanisms.sums import SumLaw
from fedllm.mechanisms.work import LocalSettings, LocalStatistics, LocalWork
from fedllm.privacy.accounting.calibration import solve_noise_multiplier
from fedllm.privacy.accounting.events import Event, PoissonGaussian
from fedllm.randomness import RandomStream

Quantise = Callable[[NDArray[np.floating[Any]], RandomStream], NDArray[np.uint64]]
Purpose = tuple[str | int, ...]


class Segment(Protocol):
    """One trained tensor of an adapter, as far as bounds depend on it."""

    @property
    def size(self) -> int:
        """Number of values."""
        ...

    @property
    def group(self) -> Literal["lora", "head"]:
        """Which learning rate it has."""
        ...


@dataclass(frozen=True)
class SiteRound:
    """One site's round, as far as its mechanism needs to know it.

    Attributes
    ----------
    work : LocalWork
        Trains on the site's records.
    announced_units : int
        What the site announced of its size; see `Mechanism.announced_units`.
    noise_multiplier : float, optional
        What the ledger was charged for, from `Mechanism.agreed_noise`.
    quantise, quantise_parts : callable
        Turn an update (P,) into levels, rounding at random; the second takes it as parts of
        its bounds.
    purpose : tuple
        Names the site and the round, where random numbers can be repeated; see
        `Mechanism.random`.
    clipping_norm : float, optional
        Where the last round's norm ended.
    """

    work: LocalWork
    announced_units: int
    noise_multiplier: float | None
    quantise: Quantise
    quantise_parts: Quantise
    purpose: Purpose
    clipping_norm: float | None = None


@dataclass(frozen=True)
class Contribution:
    """What leaves a site (``levels``), and what stays (the rest).

    Attributes
    ----------
    levels : uint64 array (P,)
        The update, quantised, with the site's noise.
    statistics : LocalStatistics
        For the site's own log alone.
    clipping_norm : float
        Where the next round's clipping norm starts.
    """

    levels: NDArray[np.uint64]
    statistics: LocalStatistics
    clipping_norm: float


@dataclass(frozen=True)
class Wording:
    """What people are told of a mechanism; the words are keys of the report's catalogue.

    Attributes
    ----------
    noise : {"none", "local", "distributed"}
        Where the noise is.
    clipping : {"clipping", "clipping_start", "clipping_site"}
        What is clipped: each unit's gradient, the same with a norm that moves, or the whole
        update.
    sampled : bool
        Whether units are drawn at random into steps, so that a sampling rate counts.
    """

    noise: Literal["none", "local", "distributed"]
    clipping: Literal["clipping", "clipping_start", "clipping_site"]
    sampled: bool


class Mechanism(ABC):
    """One way in which a run is private; made by `mechanism_of`, without state.

    Parameters
    ----------
    config : RunConfig
        What the coordinator asks for.

    Attributes
    ----------
    name : str
        What it is, in a few words of the field.
    """

    name: ClassVar[str]

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.evaluation = EvaluationSums(config)

    # What people are told

    @property
    @abstractmethod
    def wording(self) -> Wording:
        """What the report says of it."""

    @property
    def needs_masks(self) -> bool:
        """Whether a single update, opened, would have less noise than is promised."""
        return False

    @property
    def colluders(self) -> int | None:
        """On how many sites in league the noise of a sum counts; None if each gives all of it."""
        return None

    # What a unit is part of

    def announced_units(self, units: int) -> int:
        """Return what a site with ``units`` says of its size, before a round; 0 for nothing.

        Where sampling rate and noise follow from a site's size, whoever sees its update can
        tell them; so they follow from a public number, which the site signs. Elsewhere it says
        none, and nothing that can be seen depends on it.
        """
        return 0

    def require_size(self, units: int) -> None:  # noqa: B027
        """Refuse a run at a site that is too large for it; here none is.

        Raises
        ------
        RefusedError
            Says nothing of how many units there are.
        """

    @property
    def _held_out(self) -> float:
        """Part of a site's units that it does not train on."""
        return self._config.evaluation.holdout if self._config.evaluation.every else 0.0

    def sampling_rate(self, units: int) -> float:
        """Return the probability of one of a site's ``units`` to be in a step that is charged."""
        return batch_rate(self._config, units)

    @property
    def releases_per_round(self) -> int:
        """How many noised sums of a unit one round releases."""
        return self._config.training.local_steps

    @property
    def shares(self) -> int:
        """How many sites' independent shares make up the whole noise; 1 where each has its own."""
        return noise_shares(self._config)

    @property
    def noise_share(self) -> float:
        """Part of the noise's standard deviation that one site adds.

        The shares of the smallest sum that may be opened, less those of the assumed colluders,
        make up the whole: n shares of 1/sqrt(n) do.
        """
        return 1.0 / sqrt(self.shares)

    def settings(
        self, units: int, noise_multiplier: float | None, clipping_norm: float | None = None
    ) -> LocalSettings:
        """Return what a site with ``units`` records or persons does in one round.

        Parameters
        ----------
        units : int
            Records or persons at the site.
        noise_multiplier : float, optional
            Of each release; None in a run without privacy.
        clipping_norm : float, optional
            Where the norm starts; the run's own when left out.
        """
        training, rate = self._config.training, batch_rate(self._config, units)
        return LocalSettings(
            steps=training.local_steps,
            sampling_rate=rate,
            expected_batch_size=self._divisor(rate * units),
            microbatch_size=training.microbatch_size,
            optimizer=training.optimizer,
            learning_rate=training.learning_rate,
            head_learning_rate=training.head_learning_rate or training.learning_rate,
            clipping_norm=clipping_norm or self._config.privacy.clipping_norm,
            noise_multiplier=noise_multiplier,
            activation_checkpointing=training.activation_checkpointing,
            sampled_words=training.sampled_words,
        )

    def _divisor(self, expected: float) -> float:
        """Return what a batch's sum is divided by, given the batch that a site expects."""
        return expected

    # Choosing noise

    @property
    def _target_delta(self) -> float:
        return self._config.privacy.delta

    def needed_noise(self, units: int, number: int, done: Sequence[Event]) -> float | None:
        """Return the noise multiplier with which the rest of a run keeps its epsilon at a site.

        Parameters
        ----------
        units : int
            Records or persons at the site.
        number : int
            The next round; all rounds from it on are still to come.
        done : sequence of Event
            What training has been charged in this run so far.

        Raises
        ------
        BudgetError
            If no noise is enough.
        """
        return self._solve(self.sampling_rate(units), number, done)

    def _solve(self, rate: float, number: int, done: Sequence[Event]) -> float | None:
        privacy, rounds = self._config.privacy, self._config.rounds
        if privacy.epsilon is None:
            return None
        left = (rounds.count - number + 1) * self.releases_per_round
        before = tuple(self._as_gaussian(event) for event in done)
        beside = self.evaluation.planned
        return choose_noise_multiplier(
            privacy.epsilon, self._target_delta, rate, left, before, beside
        )

    def _as_gaussian(self, event: Event) -> Event:
        """Return the continuous noise that an event is worth, which noise is chosen by."""
        return event

    def announced_noise(self, number: int, before: Sequence[float]) -> float | None:
        """Return the noise multiplier that the coordinator announces for its next attempt.

        None where each site chooses its own. Everything it depends on is public, so that
        coordinator and sites agree.

        Parameters
        ----------
        number : int
            The round.
        before : sequence of float
            Noise multipliers of all attempts so far.
        """
        return None

    def agreed_noise(self, needed: float | None, announced: float | None) -> float | None:
        """Return the noise multiplier that a site trains with and is charged for.

        Parameters
        ----------
        needed : float, optional
            From `needed_noise`, at this site.
        announced : float, optional
            From the round's signed statement.

        Raises
        ------
        RefusedError
            If the announced noise does not keep the run's promise at this site.
        """
        return needed

    # What it costs

    @abstractmethod
    def cost(self, units: int, length: int, noise_multiplier: float | None) -> Cost:
        """Return what one round costs each of a site's units.

        Parameters
        ----------
        units : int
            Records or persons at the site.
        length : int
            Values of the adapter.
        noise_multiplier : float, optional
            From `agreed_noise`.
        """

    def planned(self, units: int, length: int) -> list[Cost]:
        """Return what a whole run will cost a site of ``units``: all rounds, then evaluations."""
        noise = self.needed_noise(units, 1, ())
        rounds = [self.cost(units, length, noise)] * self._config.rounds.count
        evaluations = len(self.evaluation.rounds)
        return [*rounds, *([self.evaluation.cost] * evaluations if evaluations else ())]

    # What leaves

    @cached_property
    def _largest_noise(self) -> float | None:
        """Noise multiplier of a site that uses all its records in each step: no real one's is more.

        A site's own sampling rate and noise are private with local noise; bounds must not be.
        """
        privacy = self._config.privacy
        if privacy.epsilon is None:
            return None
        releases = self._config.rounds.count * self.releases_per_round
        beside = self.evaluation.planned
        return solve_noise_multiplier(privacy.epsilon, privacy.delta, 1.0, releases, beside)

    @property
    def _most_noise(self) -> float:
        """Noise multiplier that there is room for in what leaves."""
        return self._largest_noise or 0.0

    @property
    def public_settings(self) -> LocalSettings:
        """What a round looks like from public numbers alone.

        ``training.batch_size`` stands for a site's batch, and the noise is the largest.
        """
        batch = self._config.training.batch_size
        settings = self.settings(batch, self._largest_noise)
        return replace(settings, expected_batch_size=float(batch))

    def bounds(self, segments: Sequence[Segment]) -> tuple[float, ...]:
        """Return for each segment the bound of one coordinate of an update.

        From public settings alone, so that quantisation says nothing about records.

        Raises
        ------
        BudgetError
            If no noise keeps the run's epsilon.
        ConfigError
            If what leaves does not fit the run's levels.
        """
        return update_bounds(self.public_settings, segments)

    def sum_law(
        self, cohort: Sequence[int], number: int, noise: Sequence[float], length: int
    ) -> SumLaw | None:
        """Return what the opened sum of an honest cohort stays within.

        None where nothing tighter holds for honest sites than the bounds of their updates: a
        site may have records whose update is at the bound in every value.

        Parameters
        ----------
        cohort : sequence of int
            What each site in the sum announced of its size; see `announced_units`.
        number : int
            The round.
        noise : sequence of float
            Noise multipliers announced for all attempts so far, this one's last; 0 where sites
            choose their own.
        length : int
            Values of an update.
        """
        return None

    def _chosen_noise(self, rate: float, number: int, attempts: int) -> float | None:
        """Return the most noise that a site of this sampling rate chooses for itself.

        As if it was charged for every attempt before, each with as little noise as in the first
        round: whatever it was charged, it needs no more noise now. For a site whose size is the
        same in the whole run. None where such a site could not go on.
        """
        least = self._solve(rate, 1, ())
        if least is None:
            return None
        event = PoissonGaussian(rate, least, self.releases_per_round)
        try:
            return self._solve(rate, number, (event,) * attempts)
        except BudgetError:
            return None

    @property
    def _opens_exactly(self) -> bool:
        """Whether what is opened is the sum of the levels and nothing else."""
        return self._config.encryption.scheme != "ckks"

    def random(self, *purpose: str | int) -> RandomStream:
        """Return what batches and rounding are drawn from; nobody can foresee it."""
        return RandomStream.secure()

    @abstractmethod
    def contribute(self, asked: SiteRound) -> Contribution:
        """Do a site's round: sample, clip, add noise, quantise.

        Raises
        ------
        TrainingError
            If training did not do its work and saying so tells nothing of a record.
        """

    def _noised_steps(self, settings: LocalSettings, asked: SiteRound) -> Contribution:
        """Train with whatever noise the settings put into each step, and quantise the update."""
        sampling = self.random("sampling", *asked.purpose)
        result = asked.work.train(settings, sampling, RandomStream.secure())
        levels = asked.quantise(result.update, self.random("rounding", *asked.purpose))
        return Contribution(levels, result.statistics, result.clipping_norm)


def batch_rate(config: RunConfig, units: int) -> float:
    """Return the probability of one record or person to be in a batch."""
    if config.training.sampling_rate is not None:
        return config.training.sampling_rate
    return min(1.0, config.training.batch_size / max(units, 1))
