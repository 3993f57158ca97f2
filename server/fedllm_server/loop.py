"""The loop of rounds at the coordinator: order, step, evaluate, checkpoint, again."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters import adapter_of
from fedllm.clock import utc_now
from fedllm.config import RunConfig
from fedllm.data.encode import EncodedDataset
from fedllm.errors import FedllmError, PeerError, TrainingError
from fedllm.federation.coordinator.answers import who_and_why
from fedllm.federation.coordinator.cohort import choose_cohort, gather_cohort
from fedllm.federation.coordinator.rounds import (
    KeyAuthority,
    RoundOutcome,
    Sites,
    run_round,
    statement_of,
)
from fedllm.federation.protocol.evaluating import read_sum
from fedllm.federation.protocol.messages import CohortMember, RoundStatement
from fedllm.federation.protocol.terms import Terms
from fedllm.federation.site.orders import LARGEST_VALUE
from fedllm.identity.roster import Roster
from fedllm.mechanisms import mechanism_of
from fedllm.models.shared import SharedModel
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.heads import keep_heads, read_heads, went_back
from fedllm.runs import names
from fedllm.runs.checkpoints import RunState, newest_round, save_checkpoint
from fedllm.runs.folder import config_digest
from fedllm.runs.metrics import Figures, RoundReport, append_report, cut_reports
from fedllm.runs.observer import Observer, Start
from fedllm.training.evaluate import evaluate
from fedllm.training.server_optimizer import ServerOptimizer

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
    """

    out: Path
    model: SharedModel
    test: EncodedDataset | None
    roster: Roster
    observer: Observer
    site_figures: Callable[[str, int], tuple[dict[str, float], dict[str, float]]]


def starting_state(
    config: RunConfig, model: SharedModel, found: RunState | None, test: str = ""
) -> RunState:
    """Return the state to begin from: the newest checkpoint, or a fresh run where there is none.

    ``test`` is the `public_digest` of the run; a checkpoint of an earlier version lacks it.
    """
    if found is not None:
        return replace(found, labels=model.labels, test=test)
    return RunState(
        secrets.token_hex(8),
        0,
        (),
        config_digest(config),
        adapter_of(model).start(),
        model=model.fingerprint,
        labels=model.labels,
        test=test,
    )


def require_acceptable(config: RunConfig, state: RunState) -> None:
    """Refuse an adapter that every site of a private run would refuse, before one is asked.

    Raises
    ------
    TrainingError
        If a value is beyond what a site accepts.
    """
    if not config.private or np.abs(state.adapter).max(initial=0.0) <= LARGEST_VALUE:
        return
    raise TrainingError(
        f"after round {state.round} the adapter has values beyond {LARGEST_VALUE:g}, which no site "
        "accepts: the noise is too large for this learning rate; no further round is charged",
        "start a new run with a larger privacy.epsilon, or a smaller rounds.learning_rate or "
        "training.learning_rate (and head_learning_rate); `fedllm privacy plan RUN.toml` shows the "
        "noise",
    )


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
        self._method = adapter_of(place.model)
        self._optimizer = ServerOptimizer(config.rounds, self._method.up)

    def run(self, state: RunState) -> RunState:
        """Run all rounds that are left and return the last state.

        Raises
        ------
        TrainingError
            If the adapter has become one that no site accepts; nobody is asked, nothing charged.
        FedllmError
            If a round fails; finished rounds are kept. A peer's misbehaviour is forgiven twice.
        """
        if state.round:
            self._optimizer.load(state.optimizer)
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
        reports = cut_reports(self._place.out / names.METRICS, -1 if fresh else state.round)
        if not reports or reports[-1].round < state.round:
            state = self._complete(state)
        while state.round < rounds:
            state = self._next(state)
        return state

    def _next(self, state: RunState) -> RunState:
        started, began = time.perf_counter(), utc_now()
        number = state.round + 1
        require_acceptable(self._config, state)
        if self._sites.changed():
            self._members = self._gather(number)
        state, outcome = self._attempts(state, number)
        adapter = self._method.next(state.adapter, outcome.mean, self._optimizer.apply)
        report = RoundReport(
            round=number,
            started=began,
            sites=len(outcome.survivors),
            dropped=outcome.dropped,
            update_norm=float(np.linalg.norm(outcome.mean)),
            bytes_up=outcome.bytes_up,
            bytes_down=outcome.bytes_down,
            seconds={**outcome.seconds, "total": time.perf_counter() - started},
        )
        optimizer = self._optimizer.state()
        state = replace(state, round=number, adapter=adapter, optimizer=optimizer, report=report)
        save_checkpoint(self._checkpoints, state)
        return self._complete(state)

    def _complete(self, state: RunState) -> RunState:
        """Evaluate after a finished round and write its line, also when a crash came between."""
        began, started = time.perf_counter(), utc_now()
        number = state.round
        if number == 0:
            metrics = self._evaluate(state.adapter)
            self._report(RoundReport(round=0, metrics=metrics, started=started))
            return state
        report = state.report or RoundReport(round=number, started=started)
        if report.site_metrics is None and number in self._mechanism.evaluation.rounds:
            site_metrics = self._evaluate_at_sites(state)
            report = report.model_copy(update={"site_metrics": site_metrics})
            state = replace(state, report=report)
            # Each evaluation is charged once: what came out of it must not be lost.
            save_checkpoint(self._checkpoints, state)
        at_sites, epsilon = self._place.site_figures(state.run, number)
        before = time.perf_counter()
        metrics = self._evaluate(state.adapter) if self._due(number) else None
        now = time.perf_counter()
        seconds = {
            **at_sites,
            **report.seconds,
            "evaluate": now - before,
            "total": (report.seconds.get("total") or 0.0) + now - began,
        }
        found = {"metrics": metrics, "epsilon": epsilon, "seconds": seconds}
        self._report(RoundReport.model_validate(report.model_dump() | found))
        return state

    def _attempts(self, state: RunState, number: int) -> tuple[RunState, RoundOutcome]:
        for left in reversed(range(_MAX_ATTEMPTS)):
            noise = self._mechanism.announced_noise(number, state.noise)
            state = replace(state, noise=(*state.noise, noise or 0.0))
            # Durable before anyone is asked: after a crash this attempt counts as charged.
            save_checkpoint(self._checkpoints, state)
            try:
                return state, self._attempt(state, number, noise)
            except PeerError as error:
                if left == 0:
                    self._place.observer.note(
                        f"round {number} failed {_MAX_ATTEMPTS} times, the last time: {error}"
                    )
                    raise
                self._place.observer.note(f"round {number} failed and is tried again: {error}")
                self._members = self._gather(number)
        raise RuntimeError("no attempt is left")

    def _attempt(self, state: RunState, number: int, noise: float | None) -> RoundOutcome:
        attempt = len(state.noise)
        cohort = choose_cohort(self._config, self._members, number, attempt)
        statement = statement_of(self._terms, cohort, number, attempt, noise)
        return self._run_round(statement, state.adapter)

    def _evaluate_at_sites(self, state: RunState) -> dict[str, float] | None:
        number = state.round
        if not self._members:
            self._place.observer.note(
                f"the evaluation at the sites after round {number} was cut off and is not repeated"
            )
            return None
        statement = statement_of(self._terms, self._members, number, number, None, "evaluation")
        try:
            require_acceptable(self._config, state)
            outcome = self._run_round(statement, state.adapter)
        except FedllmError as error:
            # A figure less is no reason to lose a run; and each evaluation is charged once.
            self._place.observer.note(f"no evaluation at the sites after round {number}: {error}")
            return None
        count = len(outcome.survivors)
        return read_sum(self._config, outcome.mean * count, count)

    def _run_round(self, statement: RoundStatement, adapter: NDArray[np.float32]) -> RoundOutcome:
        outcome = run_round(
            self._sites,
            self._authority,
            self._terms,
            self._place.roster,
            statement,
            adapter,
            partial(self._place.observer.site_answered, statement.round),
        )
        for who, why in who_and_why(sorted(outcome.dropped.items()), self._place.roster):
            self._place.observer.note(f"round {statement.round} goes on without {who}: {why}")
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
        cohort = gather_cohort(self._sites, self._terms, number, place.roster, place.observer.note)
        self.names.update(member.name for member in cohort)
        return cohort

    def _due(self, number: int) -> bool:
        rounds = self._config.rounds
        return number == rounds.count or number % rounds.evaluate_every == 0

    def _evaluate(self, adapter: NDArray[np.float32]) -> Figures | None:
        if self._place.test is None:
            return None
        self._method.place(adapter)
        return {**evaluate(self._place.model, self._place.test)}

    def _report(self, report: RoundReport) -> None:
        report = report.model_copy(update={"finished": utc_now()})
        append_report(self._place.out / names.METRICS, report)
        self._place.observer.finished_round(report)
