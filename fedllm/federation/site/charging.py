"""What a round costs a site, written into its ledger before a record is touched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from fedllm.canonical import sha256_hex
from fedllm.config import RunConfig, SitePolicy
from fedllm.errors import RefusedError
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.memory import SiteMemory
from fedllm.federation.site.policy import protected_unit
from fedllm.identity.keys import Identity
from fedllm.mechanisms import Cost, mechanism_of
from fedllm.privacy.accounting.accountants import upper_bound
from fedllm.privacy.accounting.events import Event, fold
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.ledger import Ledger


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
    """A site's account in its ledger; keeps the ledger open and reads no record.

    Whether it refuses follows from what was charged to it before, and from nothing else.

    Parameters
    ----------
    files : SiteFiles
        The ledger, and what the site remembers of it.
    identity : Identity
        Signs entries.
    policy : SitePolicy
        The site's ceilings, its account if it declares one, and whether its source names persons.
    """

    def __init__(self, files: SiteFiles, identity: Identity, policy: SitePolicy) -> None:
        files.ledger.parent.mkdir(parents=True, exist_ok=True)
        self._budget = policy.budget
        self._data = policy.data
        self._persons = policy.allow.unit == "person"
        self._name = policy.budget.account or ""
        self._memory = SiteMemory(files.memory, files.at_once)
        anchor = self._memory.head()
        self._ledger = Ledger.open(files.ledger, identity.name, identity, anchor, files.sync)
        # Before the first charge, so that a ledger with charges and no memory is an old copy.
        if self._memory.head() is None:
            self._memory.remember(self._ledger.last)

    @property
    def ledger(self) -> str:
        """Id of the ledger, from which the site's masks derive."""
        return self._ledger.id

    def head(self) -> Head:
        """Return the end of the ledger as this site wrote it, for the coordinator to keep."""
        return self._ledger.last

    def check_run(self, run: str, number: int, config: RunConfig, units: int, length: int) -> None:
        """Refuse a run whose rounds from ``number`` on do not fit the site's budget.

        ``length`` is that of the adapter.

        Raises
        ------
        BudgetError
            Says how much is left, in public numbers.
        RefusedError
            If the policy asks for persons, and the site's source names none.
        """
        mechanism = mechanism_of(config)
        done = self._ledger.events_of_run(run, "training")
        cost = mechanism.cost(units, length, mechanism.needed_noise(units, number, done))
        rounds = range(number, config.rounds.count + 1)
        planned = [self._charge(run, one, config, cost) for one in rounds]
        left = [one for one in mechanism.evaluation.rounds if one >= number]
        if left:
            of_one = mechanism.evaluation.cost
            planned += [self._evaluation_charge(run, one, config, of_one) for one in left]
        self._ledger.check(planned, self._ceiling(config))

    def require_config(self, run: str, config: str) -> None:
        """Refuse a run that goes on under another configuration; see `Ledger.require_config`."""
        self._ledger.require_config(run, config)

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
        RepeatError
            If this statement was charged before.
        """
        done = self._events_before(statement, "training")
        mechanism = mechanism_of(config)
        needed = mechanism.needed_noise(units, statement.round, done)
        noise = mechanism.agreed_noise(needed, statement.noise_multiplier)
        cost = mechanism.cost(units, length, noise)
        charge = self._charge(statement.run, statement.round, config, cost)
        return Paid(self._reserve(charge, statement, config), noise)

    def reserve_evaluation(self, statement: RoundStatement, config: RunConfig) -> Paid:
        """Charge one evaluation on held-out records; on disk when this returns.

        Raises
        ------
        BudgetError
            If it does not fit the site's budget.
        RefusedError
            If the run has no evaluation after this round, or has had all of them.
        RepeatError
            If this statement was charged before.
        """
        done = self._events_before(statement, "evaluation")
        evaluation = mechanism_of(config).evaluation
        rounds = evaluation.rounds
        if statement.round not in rounds or len(done) >= len(rounds):
            raise RefusedError(
                "the run has no evaluation at the sites left for this round",
                "what the run may spend on evaluation was fixed before it began",
            )
        charge = self._evaluation_charge(statement.run, statement.round, config, evaluation.cost)
        return Paid(self._reserve(charge, statement, config), None)

    def settle(self, statement: RoundStatement, words: bytes, sites: int) -> None:
        """Note, once, which sum of a round may be opened; see `Ledger.settle`.

        ``words`` are what the site signs to name the sites in it.
        """
        self._ledger.settle(statement.digest, sha256_hex(words), sites)
        self._memory.remember(self._ledger.last)

    def require_settled(self, statement: RoundStatement, words: bytes) -> None:
        """Refuse what opens another sum than the one that was settled on.

        Raises
        ------
        RefusedError
            If it is another, or none.
        """
        if self._ledger.settled(statement.digest).survivors != sha256_hex(words):
            raise RefusedError("these are not the survivors settled on")

    def commit(self, paid: Paid) -> None:
        """Note that the round is finished and its result is about to leave."""
        self._ledger.commit(paid.reservation)

    def epsilon_of_run(self, run: str, delta: float) -> float:
        """Return what one run has cost so far."""
        return upper_bound(fold(self._ledger.events_of_run(run)), delta)

    def spent(self) -> float:
        """Return what all runs together have cost the account, at the delta of the ceiling."""
        return upper_bound(fold(self._ledger.events(self._name)), self._budget.delta)

    def left(self) -> float:
        """Return how much epsilon the site's ceiling leaves to the account."""
        return max(0.0, self._budget.epsilon - self.spent())

    def _events_before(self, statement: RoundStatement, purpose: str) -> list[Event]:
        """Return what the run was charged for one purpose, if this statement may be charged too."""
        with self._ledger.one_look():
            self._require_new(statement, purpose)
            return self._ledger.events_of_run(statement.run, purpose)

    def _require_new(self, statement: RoundStatement, purpose: str) -> None:
        # Whoever asks again must hear that, not that the noise or the budget is too small now.
        self._ledger.require_new(statement.run, purpose, statement.digest, statement.attempt)
        self._ledger.require_config(statement.run, statement.config)

    def _reserve(self, charge: Charge, statement: RoundStatement, config: RunConfig) -> int:
        stated = replace(
            charge,
            statement=statement.digest,
            order_attempt=statement.attempt,
            config=statement.config,
        )
        reservation = self._ledger.reserve(stated, self._ceiling(config))
        self._memory.remember(self._ledger.last)
        return reservation

    def _charge(self, run: str, number: int, config: RunConfig, cost: Cost) -> Charge:
        unit = protected_unit(config, self._data)
        if self._persons and unit != "person" and config.unit != "site":
            raise RefusedError(
                "the site's policy asks for the protection of persons, and its source names none",
                "the site's owner names the column of the persons in data.unit",
            )
        return Charge(
            run=run,
            round=number,
            account=self._name,
            events=cost.events,
            colluder_events=cost.alone,
            delta=config.privacy.delta,
            name=config.name,
            unit=unit,
        )

    def _evaluation_charge(self, run: str, number: int, config: RunConfig, cost: Cost) -> Charge:
        return replace(self._charge(run, number, config, cost), purpose="evaluation")

    def _ceiling(self, config: RunConfig) -> Ceiling:
        # A site that allows runs without privacy has no ceiling for them; what they spend
        # stands in the ledger all the same, and is infinite for every later run.
        if not config.private:
            return Ceiling(inf, self._budget.delta)
        against_colluders = self._budget.colluders_epsilon or inf
        return Ceiling(self._budget.epsilon, self._budget.delta, against_colluders)
