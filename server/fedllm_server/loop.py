"""The loop of rounds at the coordinator: order, step, evaluate, checkpoint, again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters import AdapterMethod, adapter_of, sent_in_turn
from fedllm.adapters.averaging import AveragingLoss
from fedllm.adapters.ranks import block_weights
from fedllm.at_rest.vault import Vault
from fedllm.clock import utc_now
from fedllm.config import RunConfig
from fedllm.data.encode import EncodedDataset
from fedllm.errors import FedllmError, PeerError
from fedllm.federation.coordinator.answers import who_and_why
from fedllm.federation.coordinator.cohort import choose_cohort, gather_cohort
from fedllm.federation.coordinator.rounds import (
    KeyAuthority,
    RoundOutcome,
    Sites,
    run_round,
    statement_of,
)
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.evaluating import SiteQuality, read_sum
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.terms import Terms
from fedllm.identity.roster import Roster
from fedllm.mechanisms import mechanism_of
from fedllm.models.shared import SharedModel
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.heads import keep_heads, read_heads, went_back
from fedllm.runs import names
from fedllm.runs.checkpoints import RunState, newest_round, save_checkpoint
from fedllm.runs.metrics import Figures, RoundReport, append_report, cut_reports
from fedllm.runs.observer import Observer, Start
from fedllm.training.evaluate import evaluate
from fedllm.training.server_optimizer import ServerOptimizer
from fedllm_server.verdicts import (
    acceptable,
    judge_test,
    norm_verdict,
    require_acceptable,
    require_progress,
    rising,
)
from fedllm_server.watched import WatchedSites

_MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Workplace:
    """What a run works on at the coordinator.

    Attributes
    ----------
    out : Path
        The run folder.
    model : SharedModel
        Base model and adapter; the adapter's values come from the state.
    test : EncodedDataset, optional
        The public test set.
    roster : Roster
        The federation's parties.
    observer : Observer
        Who watches.
    site_figures : callable
        Given a round, what a simulation knows of the sites: seconds by phase and the
        epsilon spent. A deployment knows nothing of it.
    vault : Vault, optional
        Seals checkpoints.
    sync_sites : callable
        Sees that what the sites charged for a round is on disk, where a simulation does it for all
        of them; called before anything that came of the round is kept.
    """

    out: Path
    model: SharedModel
    test: EncodedDataset | None
    roster: Roster
    observer: Observer
    site_figures: Callable[[str, int], tuple[dict[str, float], dict[str, float]]]
    vault: Vault | None = None
    sync_sites: Callable[[], None] = lambda: None


class RoundLoop:
    """Carries a run from its state to its last round.

    Parameters
    ----------
    config : RunConfig
        What is asked for.
    place : Workplace
        Model, test set, run folder.
    terms : Terms
        As the sites hear them.
    sites, authority
        The other parties.

    Attributes
    ----------
    names : set of str
        The sites that were in any cohort since `run` began.
    """

    def __init__(
        self,
        config: RunConfig,
        place: Workplace,
        terms: Terms,
        sites: Sites,
        authority: KeyAuthority,
    ) -> None:
        self._config = config
        self._mechanism = mechanism_of(config)
        self._place = place
        self._terms = terms
        self._sites = sites
        self._authority = authority
        self._checkpoints = place.out / names.CHECKPOINTS
        # Those that take part in the run; a round may be for some of them.
        self._members: tuple[CohortMember, ...] = ()
        self.names: set[str] = set()
        self._heads: dict[str, Head] = {}
        self._optimizer = self._new_optimizer()
        self._reports: list[RoundReport] = []

    def run(self, state: RunState) -> RunState:
        """Run all rounds that are left and return the last state.

        Raises
        ------
        TrainingError
            If the adapter has become one that no site accepts; nobody is asked, nothing charged.
            Or if several rounds in a row were rejected; see `require_progress`.
        FedllmError
            If a round fails; finished rounds are kept. A peer's misbehaviour is forgiven twice.
        """
        self._restore(state)
        kept = self._place.out / names.HEADS
        if kept.exists():
            self._heads = {site: heads[-1] for site, heads in read_heads(kept).items()}
        rounds = self._config.rounds.count
        # When nothing is left to train, nobody is asked for anything: all may be spent.
        self._members = self._gather(state.round + 1) if state.round < rounds else ()
        self._place.observer.started(
            Start(
                state.run,
                self._config,
                "rounds",
                rounds,
                state.round,
                len(self._members),
                self._place.roster.titles,
            )
        )
        fresh = newest_round(self._checkpoints) is None
        self._reports = cut_reports(self._place.out / names.METRICS, -1 if fresh else state.round)
        if not self._reports or self._reports[-1].round < state.round:
            state = self._complete(state)
        while state.round < rounds:
            state = self._next(state)
        return state

    def _save(self, state: RunState) -> None:
        save_checkpoint(self._checkpoints, state, self._place.vault)

    def _restore(self, state: RunState) -> None:
        if state.optimizer:
            self._optimizer.load(state.optimizer)
        else:
            # Before its first step it has no state.
            self._optimizer = self._new_optimizer()

    def _new_optimizer(self) -> ServerOptimizer:
        return ServerOptimizer(self._config.rounds, *sent_in_turn(self._place.model))

    def _next(self, state: RunState) -> RunState:
        started, began = time.perf_counter(), utc_now()
        number = state.round + 1
        require_acceptable(self._config, state)
        if self._sites.changed():
            self._members = self._gather(number)
        state, outcome, lost = self._attempts(state, number)
        method = adapter_of(self._place.model, number)
        found = norm_verdict(self._mechanism, self._terms, self._members, outcome, state, method.up)
        rejected = {"norm": found.reason} if found is not None and found.reason else {}
        adapter = state.adapter
        if not rejected:
            mean = outcome.mean * self._block_weights(method, outcome)
            adapter = method.advance(adapter, mean, self._optimizer)
        report = RoundReport(
            round=number,
            started=began,
            sites=len(outcome.survivors),
            dropped=outcome.dropped,
            update_norm=float(np.linalg.norm(outcome.mean)),
            bytes_up=outcome.bytes_up,
            bytes_down=outcome.bytes_down,
            seconds={**outcome.seconds, "total": time.perf_counter() - started},
            rejected=rejected,
            norm_ratio=None if found is None else found.ratio,
            averaging_lost=lost,
        )
        optimizer = self._optimizer.state()
        state = replace(state, round=number, adapter=adapter, optimizer=optimizer, report=report)
        self._save(state)
        return self._complete(state)

    def _block_weights(
        self, method: AdapterMethod, outcome: RoundOutcome
    ) -> NDArray[np.float64] | float:
        """Return by what the opened mean is multiplied where sites have unequal ranks."""
        lora = self._config.lora
        if not lora.ranks:
            return 1.0
        sizes = {member.name: member.units for member in self._members}
        return block_weights(method.up, [lora.rank_of(sizes[name]) for name in outcome.survivors])

    def _complete(self, state: RunState) -> RunState:
        """Evaluate after a finished round and write its line, also when a crash came between."""
        began, started = time.perf_counter(), utc_now()
        number = state.round
        report = (state.report if number else None) or RoundReport(round=number, started=started)
        if report.metrics is None and (number == 0 or self._due(number)):
            state, report = self._judge(state, report)
        if number == 0:
            self._report(report.model_copy(update={"seconds": {}}))
            return state
        if report.site_metrics is None and number in self._mechanism.evaluation.rounds:
            if (told := self._evaluate_at_sites(state)) is not None:
                found = {"site_metrics": told.whole, "site_parts": told.parts}
                report = report.model_copy(update=found)
            state = replace(state, report=report)
            # Each evaluation is charged once: what came out of it must not be lost.
            self._save(state)
        at_sites, epsilon = self._place.site_figures(state.run, number)
        total = (report.seconds.get("total") or 0.0) + time.perf_counter() - began
        seconds = {"evaluate": 0.0, **at_sites, **report.seconds, "total": total}
        found = {"epsilon": epsilon, "seconds": seconds}
        self._report(RoundReport.model_validate(report.model_dump() | found))
        if number < self._config.rounds.count:
            require_progress(self._reports)
        return state

    def _judge(self, state: RunState, report: RoundReport) -> tuple[RunState, RoundReport]:
        """Evaluate on the public test file, and go back where that says so."""
        before = time.perf_counter()
        metrics = self._evaluate(state.adapter)
        seconds = {**report.seconds, "evaluate": time.perf_counter() - before}
        report = report.model_copy(update={"seconds": seconds})
        if metrics is None:
            return state, report
        report = RoundReport.model_validate(report.model_dump() | {"metrics": metrics})
        reason = ""
        # Otherwise the next round stops the run, and says why.
        if acceptable(self._config, state) or state.round == self._config.rounds.count:
            rise = self._config.rounds.rollback_rise
            state, reason = judge_test(state, report.metrics or {}, rise)
        if reason and state.good is not None:
            self._restore(state)
            rejected = {**report.rejected, "test": reason}
            update = {"rejected": rejected, "kept_round": state.good.round}
            report = report.model_copy(update=update)
        if state.round:
            state = replace(state, report=report)
            # Decided once: the adapter that was judged may not be there any more.
            self._save(state)
        return state, report

    def _attempts(
        self, state: RunState, number: int
    ) -> tuple[RunState, RoundOutcome, float | None]:
        for left in reversed(range(_MAX_ATTEMPTS)):
            noise = self._mechanism.announced_noise(number, state.noise)
            state = replace(state, noise=(*state.noise, noise or 0.0))
            # Durable before anyone is asked: after a crash this attempt counts as charged.
            self._save(state)
            try:
                return state, *self._attempt(state, number, noise)
            except PeerError as error:
                if left == 0:
                    self._place.observer.note(
                        f"round {number} failed {_MAX_ATTEMPTS} times, the last time: {error}"
                    )
                    raise
                self._place.observer.note(f"round {number} failed and is tried again: {error}")
                self._members = self._gather(number)
        raise RuntimeError("no attempt is left")

    def _attempt(
        self, state: RunState, number: int, noise: float | None
    ) -> tuple[RoundOutcome, float | None]:
        """Return what a round gave, and what averaging lost in it where that can be known."""
        attempt = len(state.noise)
        cohort = choose_cohort(self._config, self._members, number, attempt)
        statement = statement_of(self._terms, cohort, number, attempt, noise)
        lost = None
        if self._config.averages_factors and self._config.encryption.scheme == "none":
            lost = AveragingLoss.of(self._place.model, state.adapter)
        heard = None if lost is None else lost.add
        outcome = self._run_round(statement, cohort, state.adapter, heard)
        return outcome, None if lost is None else lost.share()

    def _evaluate_at_sites(self, state: RunState) -> SiteQuality | None:
        number = state.round
        if not self._members:
            self._place.observer.note(
                f"the evaluation at the sites after round {number} was cut off and is not repeated"
            )
            return None
        statement = statement_of(self._terms, self._members, number, number, None, "evaluation")
        try:
            require_acceptable(self._config, state)
            outcome = self._run_round(statement, self._members, state.adapter)
        except FedllmError as error:
            # A figure less is no reason to lose a run; and each evaluation is charged once.
            self._place.observer.note(f"no evaluation at the sites after round {number}: {error}")
            return None
        count = len(outcome.survivors)
        return read_sum(self._config, self._terms.labels, outcome.mean * count, count)

    def _run_round(
        self,
        statement: RoundStatement,
        members: tuple[CohortMember, ...],
        adapter: NDArray[np.float32],
        each: Callable[[NDArray[np.float64]], None] | None = None,
    ) -> RoundOutcome:
        observer = self._place.observer
        outcome = run_round(
            WatchedSites(self._sites, observer, statement.round, statement.purpose),
            self._authority,
            self._terms,
            self._place.roster,
            statement,
            members,
            adapter,
            partial(observer.site_answered, statement.round),
            each,
        )
        for who, why in who_and_why(sorted(outcome.dropped.items()), self._place.roster):
            observer.note(f"round {statement.round} goes on without {who}: {why}")
        for who, why in who_and_why(sorted(outcome.recovered.items()), self._place.roster):
            observer.note(
                f"round {statement.round} counts {who}, whose masks the others took off: {why}"
            )
        self._place.sync_sites()
        self._keep_heads(statement, outcome.heads)
        return outcome

    def _keep_heads(self, statement: RoundStatement, heads: dict[str, Head]) -> None:
        keep_heads(self._place.out / names.HEADS, statement.run, statement.round, heads)
        for site in went_back(self._heads, heads):
            who = self._place.roster.shown(site)
            self._place.observer.note(
                f"the ledger of '{who}' is not the one of an earlier round continued: ask the "
                f"site, and compare with `fedllm ledger verify LEDGER --heads {names.HEADS}`"
            )
        self._heads.update(heads)

    def _gather(self, number: int) -> tuple[CohortMember, ...]:
        place = self._place
        sites = WatchedSites(self._sites, place.observer, number)
        cohort = gather_cohort(sites, self._terms, number, place.roster, place.observer.note)
        self.names.update(member.name for member in cohort)
        return cohort

    def _due(self, number: int) -> bool:
        rounds = self._config.rounds
        return number == rounds.count or number % rounds.evaluate_every == 0

    def _evaluate(self, adapter: NDArray[np.float32]) -> Figures | None:
        if self._place.test is None:
            return None
        adapter_of(self._place.model).place(adapter)
        return {**evaluate(self._place.model, self._place.test)}

    def _report(self, report: RoundReport) -> None:
        report = report.model_copy(update={"finished": utc_now()})
        append_report(self._place.out / names.METRICS, report)
        self._reports.append(report)
        for why in report.rejected.values():
            self._place.observer.note(f"round {report.round} is rejected: {why}")
        self._place.observer.finished_round(report)
        if words := rising(self._reports):
            self._place.observer.note(f"WARNING: after round {report.round} {words}")
