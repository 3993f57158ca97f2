"""What a round costs a site: the noise that keeps its promise, and the entry in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path

from fedllm.config import BudgetSection, RunConfig
from fedllm.data.records import Record
from fedllm.errors import RefusedError
from fedllm.federation.protocol.discrete import make_grid
from fedllm.federation.protocol.evaluating import (
    colluder_event,
    evaluation_event,
    evaluation_rounds,
    planned_events,
)
from fedllm.federation.protocol.messages import RoundStatement
from fedllm.federation.protocol.terms import charged_rate, charged_steps, noise_share
from fedllm.identity.keys import Identity
from fedllm.privacy.accounting.accountants import epsilon, upper_bound
from fedllm.privacy.accounting.calibration import solve_noise_multiplier
from fedllm.privacy.accounting.events import (
    Event,
    NonPrivate,
    PoissonDiscreteGaussian,
    PoissonGaussian,
    fold,
)
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.fingerprints import FingerprintKey, identify
from fedllm.privacy.ledger.ledger import Ledger


@lru_cache(maxsize=256)
def choose_noise_multiplier(
    target_epsilon: float,
    delta: float,
    rate: float,
    steps: int,
    charged: tuple[Event, ...],
    beside: tuple[Event, ...] = (),
) -> float:
    """Return the noise multiplier for the steps that are left of a run.

    The one used before, as long as the whole run stays within its epsilon: equal events
    compose most tightly. After a crash the charged steps are more than was planned, and the
    steps that are left get more noise.

    Parameters
    ----------
    target_epsilon, delta : float
        What the run promises.
    rate : float
        Sampling rate of the steps that are left.
    steps : int
        How many they are.
    charged : tuple of Event
        What training has spent in this run so far.
    beside : tuple of Event
        What the whole run spends on anything else.

    Raises
    ------
    BudgetError
        If no noise is enough.
    """
    last = charged[-1] if charged else None
    if isinstance(last, PoissonGaussian) and last.sampling_rate == rate:
        whole = [*charged, PoissonGaussian(rate, last.noise_multiplier, steps), *beside]
        if epsilon(whole, delta).value <= target_epsilon:
            return last.noise_multiplier
    return solve_noise_multiplier(target_epsilon, delta, rate, steps, (*charged, *beside))


def next_noise_multiplier(config: RunConfig, number: int, before: Sequence[float]) -> float | None:
    """Return the noise multiplier of the next attempt's sum, with distributed noise.

    Everything it depends on is public, so that coordinator and sites agree. None with local
    noise or without privacy.

    Parameters
    ----------
    number : int
        The round.
    before : sequence of float
        Noise multipliers of all attempts so far.
    """
    target = config.privacy.epsilon
    if target is None or config.privacy.noise == "local":
        return None
    # Public and the same at every site, whatever the number of its records.
    rate = charged_rate(config, 1)
    charged = tuple(PoissonGaussian(rate, noise, 1) for noise in before)
    steps = config.rounds.count - number + 1
    beside = planned_events(config)
    return choose_noise_multiplier(target, _planned_delta(config), rate, steps, charged, beside)


def _planned_delta(config: RunConfig) -> float:
    """Return the delta to choose noise for; discrete noise leaves a little for its failures."""
    delta = config.privacy.delta
    return delta * (1 - 1e-6) if config.discrete_noise else delta


def _as_gaussian(event: Event) -> Event:
    """Return the continuous noise that a step is worth, which noise is chosen by."""
    if isinstance(event, PoissonDiscreteGaussian):
        return PoissonGaussian(event.sampling_rate, event.noise_multiplier, event.steps)
    return event


@dataclass(frozen=True)
class Paid:
    """A charge that is on disk.

    Attributes
    ----------
    reservation : int
        Its number in the ledger.
    noise_multiplier : float, optional
        Of each step of the round; none without privacy.
    """

    reservation: int
    noise_multiplier: float | None


class SiteAccount:
    """A site's ledger as one run sees it; keeps it open.

    Parameters
    ----------
    path : Path
        The ledger.
    identity : Identity
        Signs entries; fingerprints derive from its secret.
    budget : BudgetSection
        The site's ceilings.
    records : sequence of Record
        The site's data set.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        budget: BudgetSection,
        records: Sequence[Record],
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._budget = budget
        self._ledger = Ledger.open(path, identity.name, identity)
        persons = any(record.unit is not None for record in records)
        key = FingerprintKey(identity.derive("data set fingerprints"))
        self._dataset = self._ledger.register(
            identify(records, key, "person" if persons else "record")
        )

    def head(self) -> Head:
        """Return the end of the ledger, for the coordinator to keep."""
        return self._ledger.head()

    def check_run(self, run: str, number: int, config: RunConfig, units: int, length: int) -> None:
        """Refuse a run whose rounds from ``number`` on do not fit the site's budget.

        ``length`` is that of the adapter.

        Raises
        ------
        BudgetError
            Says how much is left, in public numbers.
        """
        noise = self._noise(config, units, number, self._ledger.events_of_run(run, "training"))
        rounds = range(number, config.rounds.count + 1)
        planned = [self._charge(run, one, config, units, length, noise) for one in rounds]
        left = [one for one in evaluation_rounds(config) if one >= number]
        planned += [self._evaluation_charge(run, one, config) for one in left]
        self._ledger.check(planned, self._ceiling(config))

    def reserve(
        self, statement: RoundStatement, config: RunConfig, units: int, length: int
    ) -> Paid:
        """Charge one round before it is trained; on disk when this returns.

        ``length`` is that of the adapter.

        Raises
        ------
        BudgetError
            If the round does not fit the site's budget.
        RefusedError
            If the announced noise does not keep the run's promise at this site.
        """
        done = self._ledger.events_of_run(statement.run, "training")
        noise = self._noise(config, units, statement.round, done)
        if config.privacy.noise == "distributed" and noise is not None:
            announced = statement.noise_multiplier
            # Rounds that this site missed make its own need smaller, never larger.
            if announced is None or announced < noise:
                raise RefusedError(
                    "the announced noise multiplier does not keep the run's epsilon at this site",
                    "the coordinator must announce more noise or fewer rounds",
                )
            noise = announced
        charge = self._charge(statement.run, statement.round, config, units, length, noise)
        return Paid(self._ledger.reserve(charge, self._ceiling(config)), noise)

    def reserve_evaluation(self, statement: RoundStatement, config: RunConfig) -> Paid:
        """Charge one evaluation on held-out records; on disk when this returns.

        Raises
        ------
        BudgetError
            If it does not fit the site's budget.
        RefusedError
            If the run has no evaluation after this round, or has had all of them.
        """
        rounds = evaluation_rounds(config)
        done = self._ledger.events_of_run(statement.run, "evaluation")
        if statement.round not in rounds or len(done) >= len(rounds):
            raise RefusedError(
                "the run has no evaluation at the sites left for this round",
                "what the run may spend on evaluation was fixed before it began",
            )
        charge = self._evaluation_charge(statement.run, statement.round, config)
        return Paid(self._ledger.reserve(charge, self._ceiling(config)), None)

    def charged(self, statement: RoundStatement) -> bool:
        """Tell whether the ledger holds anything of the run that is of this purpose."""
        purpose = "evaluation" if statement.purpose == "evaluation" else "training"
        return bool(self._ledger.events_of_run(statement.run, purpose))

    def commit(self, paid: Paid) -> None:
        """Note that the round is finished and its result is about to leave."""
        self._ledger.commit(paid.reservation)

    def epsilon_of_run(self, run: str, delta: float) -> float:
        """Return what one run has cost the data set so far."""
        return upper_bound(fold(self._ledger.events_of_run(run)), delta)

    def left(self) -> float:
        """Return how much epsilon the site's ceiling leaves to the data set."""
        spent = upper_bound(fold(self._ledger.events(self._dataset)), self._budget.delta)
        return max(0.0, self._budget.epsilon - spent)

    def _noise(
        self, config: RunConfig, units: int, number: int, done: Sequence[Event]
    ) -> float | None:
        if config.privacy.epsilon is None:
            return None
        steps = (config.rounds.count - number + 1) * charged_steps(config)
        rate = charged_rate(config, units)
        target, delta = config.privacy.epsilon, _planned_delta(config)
        charged, beside = tuple(map(_as_gaussian, done)), planned_events(config)
        return choose_noise_multiplier(target, delta, rate, steps, charged, beside)

    def _charge(
        self,
        run: str,
        number: int,
        config: RunConfig,
        units: int,
        length: int,
        noise: float | None,
    ) -> Charge:
        event: Event = NonPrivate()
        alone: tuple[Event, ...] | None = None
        if noise is not None:
            rate, steps = charged_rate(config, units), charged_steps(config)
            event = PoissonGaussian(rate, noise, steps)
            if config.discrete_noise:
                grid = make_grid(config, length)
                event, alone = grid.event(rate, noise), (grid.event(rate, noise, alone=True),)
            elif config.privacy.noise == "distributed":
                alone = (PoissonGaussian(rate, noise * noise_share(config), steps),)
        return Charge(
            run=run,
            round=number,
            dataset=self._dataset,
            events=(event,),
            colluder_events=alone,
            delta=config.privacy.delta,
        )

    def _evaluation_charge(self, run: str, number: int, config: RunConfig) -> Charge:
        event = evaluation_event(config)
        alone = colluder_event(config, event)
        return Charge(
            run=run,
            round=number,
            dataset=self._dataset,
            events=(event,),
            colluder_events=None if alone is None else (alone,),
            delta=config.privacy.delta,
            purpose="evaluation",
        )

    def _ceiling(self, config: RunConfig) -> Ceiling:
        # A site that allows runs without privacy has no ceiling for them; what they spend
        # stands in the ledger all the same, and is infinite for every later run.
        if not config.private:
            return Ceiling(inf, self._budget.delta)
        against_colluders = self._budget.colluders_epsilon or inf
        return Ceiling(self._budget.epsilon, self._budget.delta, against_colluders)
