"""A site: joins a run, trains its rounds, keeps its ledger, and takes its masks off."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters import adapter_of, sent_in_turn
from fedllm.config import RunConfig, SitePolicy, Task
from fedllm.data.records import Record
from fedllm.encryption.survivors import survivor_statement
from fedllm.encryption.update import encrypt_levels
from fedllm.errors import STOPPING, FedllmError
from fedllm.federation.protocol.envelopes import signed_update
from fedllm.federation.protocol.masks import (
    mask_scope,
)
from fedllm.federation.protocol.messages import (
    Draw,
    Drawn,
    DrawnHeader,
    Join,
    Joined,
    JoinedHeader,
    Readied,
    Ready,
    Recover,
    Recovered,
    RecoveredHeader,
    Settle,
    Settled,
    SettledHeader,
    SiteAnswer,
    Train,
    Trained,
    TrainedHeader,
    Unmask,
    Unmasked,
    UnmaskedHeader,
)
from fedllm.federation.protocol.neighbours import own_seed
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.statements import make_member, require
from fedllm.federation.protocol.wire import Wire, digest
from fedllm.federation.site.activity import Activity
from fedllm.federation.site.brake import Brake
from fedllm.federation.site.carrying import require_carried
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.data import Datasets, SiteData
from fedllm.federation.site.draws import Draws
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.journal import Asked, Journal, Request, Spent
from fedllm.federation.site.orders import Order, OrderReader
from fedllm.federation.site.sums import SiteSums
from fedllm.federation.site.telling import SiteTelling
from fedllm.federation.site.under_way import UnderWay
from fedllm.federation.site.work import SiteWork
from fedllm.files import explained
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.mechanisms import mechanism_of
from fedllm.tasks.cache import ModelCache
from fedllm.training.made_up import MadeUpTraining

Answer = TypeVar("Answer", bound=Wire)


class Site:
    """Everything that runs at one site; no record and nothing computed from one leaves in clear.

    Parameters
    ----------
    identity : Identity
        The site's keys.
    roster : Roster
        The federation's parties, pinned.
    policy : SitePolicy
        What the site allows.
    files : SiteFiles
        The site's own files.
    model_path : str
        Where the site keeps the base model; its fingerprint is what counts.
    device : str, optional
        Where the site computes; the processor when left out.
    records : callable
        Reads the site's training records of a task.
    models : ModelCache
        Keeps the base model in memory.
    made_up : MadeUpTraining, optional
        What other sites of the same process try adapters with too.
    full_errors : bool
        Whether errors leave with their whole text (simulation).
    journal : Journal, optional
        Hears of each round and each refusal; for the people of the site alone.
    clock : callable
        Gives seconds.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Roster,
        policy: SitePolicy,
        files: SiteFiles,
        model_path: str,
        records: Callable[[Task], list[Record]],
        models: ModelCache,
        made_up: MadeUpTraining | None = None,
        full_errors: bool = False,
        journal: Journal | None = None,
        device: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = identity.name
        self._identity = identity
        self._roster = roster
        self._policy = policy
        self._files = files
        self._data = SiteData(records, identity)
        self._orders = OrderReader(identity, roster, policy.allow, models, model_path, device)
        self._work = SiteWork(self.name, policy.data, made_up)
        self._draws = Draws()
        self._sums = SiteSums(identity, roster, self._orders, self._account)
        self._full_errors = full_errors
        state = files.state
        self._telling = SiteTelling(
            files.log,
            journal,
            self._spent,
            files.at_once,
            files.sealed_log,
            None if state is None else Activity(state),
        )
        self._brake = Brake(state)
        self._under_way = UnderWay(None if state is None else state / "under_way.json")
        self._clock = clock
        self._opened: SiteAccount | None = None

    @property
    def busy(self) -> bool:
        """Whether it is in a round, which the others could not end as well without it."""
        return self._under_way.busy

    def start(self) -> tuple[Task, ...]:
        """Read the site's records before any coordinator is answered.

        What is wrong with them is between the site and its operator then.

        Returns
        -------
        tuple of str
            The tasks that the policy allows and the records have the columns for.

        Raises
        ------
        DataError
            If they cannot be read, or have a row that cannot be used.
        """
        return self._data.read_all(self._policy.allow.tasks)

    def join(self, request: Join) -> Joined:
        """Say whether this site takes part in a run; a yes holds its signed mask key."""

        def agree() -> Joined:
            self._brake.require()
            header = request.header
            config = self._orders.configuration(header.config, header.model)
            model = self._orders.model(config, header.labels, header.model)
            method = adapter_of(model)
            require(
                method.down.length == header.adapter_length,
                f"the run's adapter has {header.adapter_length} values, this site's "
                f"{method.down.length}",
            )
            require(1 <= header.round <= config.rounds.count, "there is no such round")
            self._account().require_config(header.run, digest(header.config))
            self._require_data(config)
            self._work.require_trainable(config, model, method, method.start())
            units = mechanism_of(config).announced_units(self._data.units(config))
            length = max(up.length for up in sent_in_turn(model))
            self._account().check_run(header.run, header.round, config, units, length)
            member = make_member(self._identity, self._account().ledger, header.run, units)
            return Joined(JoinedHeader(site=self.name, member=member))

        return self._guarded(
            request,
            agree,
            lambda refusal: Joined(JoinedHeader(site=self.name, refusal=refusal)),
        )

    def train(self, request: Train) -> Trained:
        """Do one round's work: check, reserve, train or evaluate, encrypt, sign, commit, answer."""

        def work() -> Trained:
            self._brake.require()
            order = self._orders.order(request, self._account().ledger)
            self._require_data(order.config)
            self._work.require_trainable(order.config, order.model, order.method, order.adapter)
            update = self._carry_out(order, request.header.statement)
            head = self._account().head()
            answer = TrainedHeader(
                site=self.name, ledger=str(head), ledger_signature=head.signature
            )
            return Trained(answer, update)

        return self._guarded(
            request,
            work,
            lambda refusal: Trained(TrainedHeader(site=self.name, refusal=refusal), b""),
        )

    def draw(self, request: Draw) -> Drawn:
        """Say with what this site draws its neighbours in a large cohort."""

        def seed() -> Drawn:
            self._brake.require()
            statement = self._orders.asked(request.header)
            require(statement.neighbours > 0, "every two sites of this cohort share a mask")
            self._draws.add(statement)
            drawn = own_seed(self._identity, self._account().ledger, statement)
            return Drawn(DrawnHeader(site=self.name, seed=drawn.hex()))

        return self._guarded(
            request, seed, lambda refusal: Drawn(DrawnHeader(site=self.name, refusal=refusal))
        )

    def ready(self, request: Ready) -> Readied:
        """Say that this site is still there; who is not stays out of the sum."""

        def answer() -> Readied:
            self._orders.asked(request.header)
            return Readied(SiteAnswer(site=self.name))

        return self._guarded(
            request, answer, lambda refusal: Readied(SiteAnswer(site=self.name, refusal=refusal))
        )

    def settle(self, request: Settle) -> Settled:
        """Agree, once, on the sites whose updates are in the sum."""
        return self._guarded(
            request,
            lambda: self._sums.settle(request),
            lambda refusal: Settled(SettledHeader(site=self.name, refusal=refusal), b""),
        )

    def unmask(self, request: Unmask) -> Unmasked:
        """Reveal what opens the sum of the survivors, when all of them agree on who they are."""

        def reveal() -> Unmasked:
            revealed = self._sums.unmask(request)
            self._under_way.end(request.header.statement)
            return revealed

        return self._guarded(
            request,
            reveal,
            lambda refusal: Unmasked(UnmaskedHeader(site=self.name, refusal=refusal)),
        )

    def recover(self, request: Recover) -> Recovered:
        """Give shares of what survivors left that went away, where they would reveal it."""
        return self._guarded(
            request,
            lambda: self._sums.recover(request),
            lambda refusal: Recovered(RecoveredHeader(site=self.name, refusal=refusal)),
        )

    def _require_data(self, config: RunConfig) -> None:
        """Refuse a run that this site's records do not suit, by columns and number alone."""
        self._data.require_unit(config)
        mechanism_of(config).require_size(self._data.units(config))

    def _guarded(
        self,
        request: Request,
        work: Callable[[], Answer],
        refuse: Callable[[Refusal], Answer],
    ) -> Answer:
        started = self._clock()
        try:
            answer = work()
        except STOPPING:
            raise
        except BaseException as error:
            found = explained(error)
            if not self._full_errors:
                self._telling.details(found)
            self._telling.refused(request, found, self._clock() - started)
            return refuse(Refusal.of_site(found, self._full_errors))
        self._telling.done(request, self._clock() - started, answer)
        return answer

    def _spent(self, asked: Asked) -> Spent | None:
        """Return what the journal says of the budget; None where there is no ledger yet."""
        # Never makes one: a refusal leaves the site as it was.
        if self._opened is None and not self._files.ledger.exists():
            return None
        budget = self._policy.budget
        delta = asked.delta or budget.delta
        try:
            account = self._account()
            epsilon, left = account.epsilon_of_run(asked.run, delta), account.left()
        except FedllmError:
            # Why is in the refusal already.
            return None
        return Spent(epsilon, delta, left, budget.epsilon, budget.delta)

    def _carry_out(self, order: Order, signed: str) -> bytes:
        """Train or evaluate as it was ordered; ``signed`` is the text of the order's statement."""
        self._under_way.begin(signed, order.statement, order.config.name)
        try:
            if order.statement.purpose == "evaluation":
                update = self._evaluate_round(order)
            else:
                update = self._train_round(order)
        except BaseException:
            self._under_way.end(signed)
            raise
        self._telling.sends(order, update)
        asked_again = order.plan.masked and order.config.encryption.recover_dropouts
        self._under_way.answered(order.config.rounds.timeout_s if asked_again else 0.0)
        return update

    def _train_round(self, order: Order) -> bytes:
        account = self._account()
        with self._brake.beginning():
            paid = account.reserve(
                order.statement, order.config, order.units, order.method.up.length
            )
        dataset = self._datasets(order).training
        started = self._clock()
        levels, statistics = self._work.train(order, dataset, paid.noise_multiplier)
        trained = self._clock()
        update = self._encrypt_and_sign(order, levels)
        self._account().commit(paid)
        self._telling.trained(
            order.statement, statistics, trained - started, self._clock() - trained
        )
        return update

    def _evaluate_round(self, order: Order) -> bytes:
        account = self._account()
        with self._brake.beginning():
            paid = account.reserve_evaluation(order.statement, order.config)
        dataset = self._datasets(order).held_out
        update = self._encrypt_and_sign(order, self._work.evaluate(order, dataset))
        self._account().commit(paid)
        return update

    def _datasets(self, order: Order) -> Datasets:
        datasets = self._data.datasets(order.config, order.model)
        self._telling.left_out(order.statement.run, datasets)
        return datasets

    def _encrypt_and_sign(self, order: Order, levels: NDArray[np.uint64]) -> bytes:
        masks = None
        if order.plan.masked:
            recover, statement = order.config.encryption.recover_dropouts, order.statement
            if not recover:
                # Pair masks alone hide this update: no seed of theirs may ever be revealed, so
                # that the whole cohort is settled on before the update leaves.
                words = survivor_statement(mask_scope(statement, order.plan), statement.cohort)
                self._account().settle(statement, words, len(statement.cohort))
            masks = self._sums.masks(statement, order.around, order.plan, recover).mask_for_update()
        payload = encrypt_levels(levels, order.plan, order.key, masks, order.statement.digest)
        return signed_update(payload, order.statement, order.plan, self._identity)

    def _account(self) -> SiteAccount:
        if self._opened is None:
            require_carried(self._files, self._identity, self._orders.roster)
            self._opened = SiteAccount(self._files, self._identity, self._policy)
        return self._opened
