"""Bugs of charges, ledgers, orders and words, each planted by a patch of the program."""

from __future__ import annotations

import math
from dataclasses import replace

from fedllm.errors import BudgetError, DataError
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.site import charging, memory
from fedllm.federation.site import data as site_data
from fedllm.federation.site import site as site_module
from fedllm.federation.site import work as site_work
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.data import SiteData
from fedllm.federation.site.site import Site
from fedllm.mechanisms import local, shared
from fedllm.mechanisms.calibrating import choose_noise_multiplier
from fedllm.mechanisms.cost import Cost
from fedllm.mechanisms.evaluation import EvaluationSums
from fedllm.mechanisms.mechanism import Mechanism
from fedllm.mechanisms.shares import SharedShares
from fedllm.privacy.accounting import accountants, calibration, events
from fedllm.privacy.ledger import audit as ledger_audit
from fedllm.privacy.ledger import charges, state
from fedllm.privacy.ledger import ledger as ledger_module
from fedllm.privacy.ledger.budget import BudgetGuard, Ceiling
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.state import LedgerState
from fedllm.training.observed import StepRecord

# --- what a round is charged -------------------------------------------------------------------


def rates_by_record_where_persons_count(patch):
    right = SiteAccount.reserve

    def reserve(self, statement, config, units, length):
        return right(self, statement, config, units if units != 7 else 16, length)

    patch.setattr(SiteAccount, "reserve", reserve)


def rates_rounded_in_the_charge(patch):
    right = local.LocalNoise.cost

    def rounded(self, units, length, noise):
        charged = right(self, units, length, noise)
        return Cost(
            tuple(replace(e, sampling_rate=round(e.sampling_rate, 3)) for e in charged.events)
        )

    patch.setattr(local.LocalNoise, "cost", rounded)


def rates_rounded_in_the_file(patch):
    right = charges.to_json

    def rounded(event):
        return {
            key: round(value, 6) if isinstance(value, float) else value
            for key, value in right(event).items()
        }

    patch.setattr(charges, "to_json", rounded)


def batches_drawn_at_a_rounded_rate(patch):
    right = Mechanism.settings

    def settings(self, units, noise_multiplier, clipping_norm=None):
        found = right(self, units, noise_multiplier, clipping_norm)
        return replace(found, sampling_rate=math.ceil(found.sampling_rate * 20) / 20)

    patch.setattr(Mechanism, "settings", settings)


def a_step_that_is_not_charged(patch):
    right = SiteAccount._charge

    def less(self, *terms):
        charge = right(self, *terms)
        return replace(
            charge,
            events=tuple(
                replace(e, steps=max(1, e.steps - 1)) if hasattr(e, "steps") else e
                for e in charge.events
            ),
        )

    patch.setattr(SiteAccount, "_charge", less)


def colluders_charged_as_everyone(patch):
    def same(self, units, length, noise):
        return Cost((events.PoissonGaussian(self.sampling_rate(units), noise, 1),), None)

    patch.setattr(shared.SharedNoise, "cost", same)


def colluders_of_evaluation_charged_as_everyone(patch):
    patch.setattr(EvaluationSums, "cost", property(lambda self: Cost((self.event,))))


def evaluation_beside_epsilon(patch):
    patch.setattr(EvaluationSums, "planned", property(lambda self: ()))


def evaluation_that_is_not_charged(patch):
    right, free = Ledger.reserve, {}

    def reserve(self, charge, ceiling):
        if charge.purpose != "evaluation":
            return right(self, charge, ceiling)
        free[id(charge)] = charge
        return -1

    commit = Ledger.commit
    patch.setattr(Ledger, "reserve", reserve)
    patch.setattr(Ledger, "commit", lambda self, n: None if n < 0 else commit(self, n))


def each_evaluation_with_all_of_its_epsilon(patch):
    def event(self):
        from fedllm.mechanisms.evaluation import _noise_multiplier

        asked, privacy = self._config.evaluation, self._config.privacy
        return events.Gaussian(_noise_multiplier(asked.epsilon, privacy.delta, 1))

    patch.setattr(EvaluationSums, "event", property(event))


def evaluations_without_an_end(patch):
    right = SiteAccount.reserve_evaluation

    def reserve(self, statement, config):
        with patch.context() as inner:
            inner.setattr(Ledger, "events_of_run", lambda *_: [])
            return right(self, statement, config)

    patch.setattr(SiteAccount, "reserve_evaluation", reserve)


def an_accountant_restarted_each_round(patch):
    def restarted(self, units, number, done):
        privacy, training = self._config.privacy, self._config.training
        rate = self.sampling_rate(units)
        return choose_noise_multiplier(
            privacy.epsilon, privacy.delta, rate, training.local_steps, ()
        )

    patch.setattr(Mechanism, "needed_noise", restarted)


def a_delta_that_is_doubled(patch):
    patch.setattr(Mechanism, "_target_delta", property(lambda self: 2 * self._config.privacy.delta))


# --- what is added up --------------------------------------------------------------------------


def _only_committed(self):
    return {n: r for n, r in self.reservations.items() if n in self.committed}


def only_committed_charges_count_in_accounts(patch):
    right = LedgerState.spent

    def spent(self, account, unit, view="sums", until=None):
        seen = replace(self, reservations=_only_committed(self))
        return right(seen, account, unit, view, until)

    patch.setattr(LedgerState, "spent", spent)


def only_committed_charges_count_in_runs(patch):
    right = Ledger.events_of_run

    def of_run(self, run, purpose=None):
        right(self, run, purpose)
        return [
            event
            for reservation in _only_committed(self._chain.state).values()
            if reservation.run == run and purpose in (None, reservation.purpose)
            for event in reservation.events
        ]

    patch.setattr(Ledger, "events_of_run", of_run)


def evaluations_that_later_runs_forget(patch):
    right = LedgerState.spent

    def spent(self, account, unit, view="sums", until=None):
        kept = {n: r for n, r in self.reservations.items() if r.purpose != "evaluation"}
        return right(replace(self, reservations=kept), account, unit, view, until)

    patch.setattr(LedgerState, "spent", spent)


def a_retry_that_is_not_charged(patch):
    right, commit, known = Ledger.reserve, Ledger.commit, {}

    def reserve(self, charge, ceiling):
        key = (str(self._chain.path), charge.run, charge.round, charge.purpose)
        if key not in known:
            known[key] = right(self, charge, ceiling)
        return known[key]

    def once(self, number):
        if number not in self._chain.state.committed:
            commit(self, number)

    patch.setattr(Ledger, "reserve", reserve)
    patch.setattr(Ledger, "commit", once)


def a_charge_after_the_work(patch):
    right = SiteAccount.commit
    reserve = Ledger.reserve
    waiting = []

    def later(self, charge, ceiling):
        self.check([charge], ceiling)
        waiting.append((charge, ceiling))
        return len(waiting)

    def commit(self, paid):
        number = reserve(self._ledger, *waiting[paid.reservation - 1])
        right(self, replace(paid, reservation=number))

    patch.setattr(Ledger, "reserve", later)
    patch.setattr(SiteAccount, "commit", commit)


def the_delta_of_statements_lost(patch):
    right = events.fold

    _everywhere(patch, "fold", lambda happened: replace(right(happened), stated_delta=0.0))


def the_epsilon_of_statements_lost(patch):
    right = events.fold
    _everywhere(patch, "fold", lambda happened: replace(right(happened), stated=0.0))


def only_the_largest_statement_counts(patch):
    """And beside what is computed: the larger of the two, not their sum."""
    right = accountants._idealised

    def larger(folded, delta):
        ideal, left, inexact = right(folded, delta)
        return (ideal, left, 0.0) if ideal.mu_squared or ideal.sampled else (ideal, left, inexact)

    patch.setattr(accountants, "_idealised", larger)


def _everywhere(patch, name, value):
    from fedllm.privacy.ledger import budget

    for module in (events, accountants, calibration, budget, charging):
        if hasattr(module, name):
            patch.setattr(module, name, value)


def _accounts(patch, named):
    right = SiteAccount._charge

    def charge(self, run, number, config, cost):
        return replace(right(self, run, number, config, cost), account=named(run, config))

    patch.setattr(SiteAccount, "_charge", charge)


def an_account_for_each_task(patch):
    _accounts(patch, lambda run, config: config.task)


def an_account_for_each_run(patch):
    _accounts(patch, lambda run, config: run)


def a_declared_account_that_is_forgotten(patch):
    _accounts(patch, lambda run, config: "")


def _may_share(patch, value):
    for module in (state, ledger_module):
        patch.setattr(module, "may_share", value)


def undeclared_charges_ignored_by_declared_accounts(patch):
    _may_share(patch, lambda charged, account: charged == account or not account)


def declared_charges_ignored_without_an_account(patch):
    _may_share(patch, lambda charged, account: charged == account or not charged)


def charges_by_data_set_ignored(patch):
    right = LedgerState.charges

    def charges(self, account, until=None):
        return [c for c in right(self, account, until) if not getattr(c, "dataset", "")]

    patch.setattr(LedgerState, "charges", charges)


def another_unit_costs_nothing(patch):
    right = LedgerState.spent

    def spent(self, account, unit, view="sums", until=None):
        found = right(self, account, unit, view, until)
        return [event for event in found if not isinstance(event, events.NonPrivate)]

    patch.setattr(LedgerState, "spent", spent)
    patch.setattr(ledger_module, "_require_one_unit", lambda *_: None)


def colluders_without_a_ceiling(patch):
    right = Ceiling.limit
    patch.setattr(
        Ceiling, "limit", lambda self, view: right(self, view) if view == "sums" else math.inf
    )


def a_ceiling_for_each_run(patch):
    right = BudgetGuard.require

    def require(self, spent, planned, ceiling, what, view="sums"):
        return right(self, (), planned, ceiling, what, view)

    patch.setattr(BudgetGuard, "require", require)


def joining_that_does_not_look_ahead(patch):
    patch.setattr(SiteAccount, "check_run", lambda *_: None)


def carried_charges_ignored(patch):
    right = LedgerState.spent

    def spent(self, account, unit, view="sums", until=None):
        return right(replace(self, carried=[]), account, unit, view, until)

    patch.setattr(LedgerState, "spent", spent)


def carried_charges_for_sums_alone(patch):
    right = LedgerState.spent

    def spent(self, account, unit, view="sums", until=None):
        seen = self if view == "sums" else replace(self, carried=[])
        return right(seen, account, unit, view, until)

    patch.setattr(LedgerState, "spent", spent)


def only_finished_rounds_carried(patch):
    right = ledger_audit.read_state

    def finished(path, *terms):
        found = right(path, *terms)
        found.reservations = _only_committed(found)
        return found

    patch.setattr(ledger_audit, "read_state", finished)


def nothing_to_carry_over(patch):
    patch.setattr(site_module, "require_carried", lambda *_: None)


# --- orders and words --------------------------------------------------------------------------


def announced_noise_believed(patch):
    patch.setattr(SharedShares, "agreed_noise", lambda self, needed, announced: announced)


def announced_noise_believed_when_it_is_near(patch):
    right = SharedShares.agreed_noise

    def near(self, needed, announced):
        if needed and announced and announced > 0.8 * needed:
            return announced
        return right(self, needed, announced)

    patch.setattr(SharedShares, "agreed_noise", near)


def an_attempt_served_twice(patch):
    patch.setattr(LedgerState, "repeats", lambda self, *order: False)


def _loss_of_rounds(patch):
    losses = {}
    right = site_work.SiteWork.train

    def train(self, *terms):
        levels, statistics = right(self, *terms)
        losses[self._name] = statistics
        return levels, statistics

    patch.setattr(site_work.SiteWork, "train", train)
    return losses


def an_older_ledger_that_is_not_missed(patch):
    patch.setattr(memory.SiteMemory, "head", lambda self: None)


def a_lost_ledger_that_is_not_missed(patch):
    patch.setattr(memory.SiteMemory, "used", lambda self: False)
    an_older_ledger_that_is_not_missed(patch)


def evaluations_left_out_when_a_run_is_checked(patch):
    right = SiteAccount.check_run

    def check(self, run, number, config, units, length):
        with patch.context() as inner:
            inner.setattr(EvaluationSums, "rounds", property(lambda self: ()))
            return right(self, run, number, config, units, length)

    planned = EvaluationSums.planned.fget
    kept = {}

    def remembered(self):
        if self.rounds:
            kept["last"] = planned(self)
        return kept.get("last", ())

    patch.setattr(EvaluationSums, "planned", property(remembered))
    patch.setattr(SiteAccount, "check_run", check)


def failed_evaluations_that_count_for_nothing(patch):
    right = SiteAccount.reserve_evaluation

    def reserve(self, statement, config):
        with patch.context() as inner:
            inner.setattr(
                Ledger,
                "events_of_run",
                lambda ledger, run, purpose=None: [
                    e
                    for r in _only_committed(ledger._chain.state).values()
                    if r.purpose == purpose
                    for e in r.events
                ],
            )
            return right(self, statement, config)

    patch.setattr(SiteAccount, "reserve_evaluation", reserve)


def public_rates_rounded(patch):
    right = Mechanism.sampling_rate
    patch.setattr(Mechanism, "sampling_rate", lambda self, units: round(right(self, units), 4))


def a_loss_in_the_sites_name(patch):
    losses, right = _loss_of_rounds(patch), Site.train

    def train(self, request):
        answer = right(self, request)
        said = f"{self.name} {losses[self.name].loss:.3f}" if self.name in losses else self.name
        return replace(answer, header=answer.header.model_copy(update={"site": said}))

    patch.setattr(Site, "train", train)


def a_loss_beside_the_ledgers_head(patch):
    losses, right = _loss_of_rounds(patch), Site.train

    def train(self, request):
        answer = right(self, request)
        if self.name not in losses or not answer.update:
            return answer
        said = f"{answer.header.ledger}#{losses[self.name].loss:.3f}"
        return replace(answer, header=answer.header.model_copy(update={"ledger": said}))

    patch.setattr(Site, "train", train)


def a_loss_in_a_refusal(patch):
    right = Refusal.of_site.__func__
    patch.setattr(Refusal, "of_site", classmethod(lambda cls, error, full: right(cls, error, True)))


def _told(patch, kind):
    right = Refusal.of_site.__func__

    def of_site(cls, error, full):
        told = right(cls, error, full)
        return told.model_copy(update={"remedy": str(error)}) if isinstance(error, kind) else told

    patch.setattr(Refusal, "of_site", classmethod(of_site))


def a_record_in_a_refusal(patch):
    _told(patch, DataError)


def a_ceiling_in_a_refusal(patch):
    _told(patch, BudgetError)


def a_broken_record_that_is_refused(patch):
    right = Site._datasets

    def datasets(self, order):
        found = right(self, order)
        if found.left_out:
            raise DataError("a record cannot be learned from")
        return found

    patch.setattr(Site, "_datasets", datasets)


def a_unit_that_breaks_off_ends_the_round(patch):
    def refuse(self, error):
        raise error

    patch.setattr(StepRecord, "broke_off", refuse)


def the_exact_size_announced(patch):
    patch.setattr(local, "rounded_size", lambda units: units)
    patch.setattr(site_data, "rounded_size", lambda units: units)


def records_announced_where_persons_count(patch):
    patch.setattr(SiteData, "units", lambda self, config: len(self.records(config.task)))


# Each with a check that must see it.
CHARGES = [
    (rates_by_record_where_persons_count, "rates"),
    (rates_rounded_in_the_charge, "rates"),
    (rates_rounded_in_the_file, "rates"),
    (batches_drawn_at_a_rounded_rate, "rates"),
    (a_step_that_is_not_charged, "rates"),
    (colluders_charged_as_everyone, "charges"),
    (colluders_of_evaluation_charged_as_everyone, "charges"),
    (evaluation_beside_epsilon, "charges"),
    (evaluation_that_is_not_charged, "charges"),
    (each_evaluation_with_all_of_its_epsilon, "charges"),
    (evaluations_without_an_end, "evaluation"),
    (an_accountant_restarted_each_round, "charges"),
    (a_delta_that_is_doubled, "charges"),
    (only_committed_charges_count_in_accounts, "budget"),
    (only_committed_charges_count_in_runs, "attempts"),
    (evaluations_that_later_runs_forget, "budget"),
    (a_retry_that_is_not_charged, "attempts"),
    (a_charge_after_the_work, "attempts"),
    (the_delta_of_statements_lost, "carry-over"),
    (the_epsilon_of_statements_lost, "carry-over"),
    (only_the_largest_statement_counts, "carry-over"),
    (an_account_for_each_task, "earlier runs"),
    (an_account_for_each_run, "earlier runs"),
    (a_declared_account_that_is_forgotten, "earlier runs"),
    (undeclared_charges_ignored_by_declared_accounts, "earlier runs"),
    (declared_charges_ignored_without_an_account, "earlier runs"),
    (charges_by_data_set_ignored, "earlier runs"),
    (another_unit_costs_nothing, "earlier runs"),
    (colluders_without_a_ceiling, "budget"),
    (a_ceiling_for_each_run, "budget"),
    (joining_that_does_not_look_ahead, "budget"),
    (carried_charges_ignored, "carry-over"),
    (carried_charges_for_sums_alone, "carry-over"),
    (only_finished_rounds_carried, "carry-over"),
    (nothing_to_carry_over, "carry-over"),
    (announced_noise_believed, "announced noise"),
    (announced_noise_believed_when_it_is_near, "announced noise"),
    (an_attempt_served_twice, "attempts"),
    (an_older_ledger_that_is_not_missed, "attempts"),
    (a_lost_ledger_that_is_not_missed, "attempts"),
    (evaluations_left_out_when_a_run_is_checked, "budget"),
    (failed_evaluations_that_count_for_nothing, "attempts"),
    (public_rates_rounded, "rates"),
    (a_loss_in_the_sites_name, "words"),
    (a_loss_beside_the_ledgers_head, "words"),
    (a_loss_in_a_refusal, "words"),
    (a_record_in_a_refusal, "words"),
    (a_ceiling_in_a_refusal, "words"),
    (a_broken_record_that_is_refused, "words"),
    (a_unit_that_breaks_off_ends_the_round, "words"),
    (the_exact_size_announced, "rates"),
    (records_announced_where_persons_count, "rates"),
]
