"""What a site writes into its ledger before it reads a record."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.federation import small_config

from fedllm.config import AllowSection, BudgetSection, DataSection, SitePolicy
from fedllm.errors import BudgetError, RefusedError, RepeatError
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.files import SiteFiles
from fedllm.identity.keys import Identity
from fedllm.mechanisms import EvaluationSums, mechanism_of
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.budget import Charge
from fedllm.privacy.ledger.ledger import Ledger

PERSONS = DataSection(train="there is no such file", unit="patient")


@pytest.fixture(scope="module")
def identity():
    return Identity.generate("anne")


@pytest.fixture
def files(tmp_path):
    return SiteFiles.of_kit(tmp_path)


def statement(number: int = 1) -> RoundStatement:
    texts = ("plan", "key", "reveal_key", "config", "labels", "bounds", "model", "adapter")
    return RoundStatement(
        run="run-1",
        round=number,
        attempt=number,
        rounds=9,
        cohort=(),
        members="",
        min_sites=2,
        noise_multiplier=None,
        **dict.fromkeys(texts, ""),
    )


def config(**sections):
    return small_config(Path("no model"), privacy={"epsilon": 2.0}, **sections)


def charged(account, files, config):
    account.reserve(statement(), config, 40, 100)
    (reservation,) = read_state(files.ledger).reservations.values()
    return reservation.account, reservation.unit


def policy(data=None, account=None):
    return SitePolicy(budget=BudgetSection(epsilon=2.0, account=account), data=data)


@pytest.mark.parametrize(
    "task", ["classification", "causal", "instruction", "token_classification"]
)
@pytest.mark.parametrize(
    ("run", "source", "unit"),
    [
        ("person", None, "person"),
        (None, None, "record"),
        # The site's own source decides, whatever the run believes of it.
        ("person", DataSection(train="x"), "record"),
        (None, PERSONS, "person"),
    ],
)
def test_the_unit_is_what_the_sites_own_source_names(files, identity, task, run, source, unit):
    asked = config(data={"unit": run})
    labels = None if task != "classification" else asked.data.labels
    data = asked.data.model_copy(update={"labels": labels})
    asked = asked.model_copy(update={"task": task, "data": data})
    account = SiteAccount(files, identity, policy(source))
    assert charged(account, files, asked) == ("", unit)


def test_records_are_not_charged_where_persons_are_promised(files, identity):
    asked = config(data={"unit": "who"})
    kind = AllowSection(unit="person")
    without = SitePolicy(allow=kind, data=DataSection(train="x"))
    account = SiteAccount(files, identity, without)
    with pytest.raises(RefusedError, match="its source names none"):
        account.check_run("run-1", 1, asked, 40, 100)
    with pytest.raises(RefusedError, match="its source names none"):
        account.reserve(statement(), asked, 40, 100)
    assert account.head().sequence == 1
    with_persons = without.model_copy(update={"data": PERSONS})
    assert charged(SiteAccount(files, identity, with_persons), files, asked) == ("", "person")


def test_a_declared_account_is_what_is_charged(files, identity):
    account = SiteAccount(files, identity, policy(PERSONS, "oncology"))
    assert charged(account, files, config()) == ("oncology", "person")
    with pytest.raises(BudgetError):
        account.check_run("run-2", 1, config(), 40, 100)
    assert account.left() < 2.0
    other = SiteAccount(files, identity, policy(PERSONS, "surgery"))
    other.check_run("run-2", 1, config(), 40, 100)
    assert other.left() == 2.0
    with pytest.raises(BudgetError):
        SiteAccount(files, identity, policy(PERSONS)).check_run("run-2", 1, config(), 40, 100)


def test_a_round_is_charged_for_the_units_and_not_for_the_length_of_the_adapter(files, identity):
    account = SiteAccount(files, identity, policy())
    account.reserve(statement(), config(), 40, 100)
    (reservation,) = read_state(files.ledger).reservations.values()
    (event,) = reservation.events
    assert event.sampling_rate == 8 / 40


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_all_that_a_run_has_still_to_spend_is_checked_when_a_site_joins(
    files, identity, monkeypatch, number
):
    """The evaluation after the very round that a site joins at is still to come."""
    planned: list[Charge] = []
    monkeypatch.setattr(Ledger, "check", lambda self, charges, ceiling: planned.extend(charges))
    asked = config(rounds={"count": 5}, evaluation={"every": 2, "epsilon": 0.5})
    SiteAccount(files, identity, policy()).check_run("run-1", number, asked, 40, 100)
    found = [(charge.purpose, charge.round) for charge in planned]
    assert found == [
        *(("training", one) for one in range(number, 6)),
        *(("evaluation", one) for one in (2, 4, 5) if one in range(number, 6)),
    ]
    training = [event for charge in planned[: 6 - number] for event in charge.events]
    assert {event.sampling_rate for event in training} == {8 / 40}


def test_whoever_asks_again_hears_that_and_nothing_of_budget_noise_or_evaluations(files, identity):
    """Each was asked before, so that all that could be refused about it was not."""
    asked = config(rounds={"count": 1}, evaluation={"every": 1, "epsilon": 0.5})
    account = SiteAccount(files, identity, policy())
    training = statement().model_copy(update={"config": "ab" * 32})
    account.reserve(training, asked, 40, 100)
    evaluation = training.model_copy(update={"purpose": "evaluation"})
    account.reserve_evaluation(evaluation, asked)
    again = "attempt 1 of run run-1 was carried out before"
    with pytest.raises(RepeatError, match=again):
        account.reserve(training, asked, 40, 100)
    with pytest.raises(RepeatError, match=again):
        account.reserve_evaluation(evaluation, asked)
    # The same attempt of another order is none that is new.
    with pytest.raises(RepeatError, match=again):
        account.reserve(training.model_copy(update={"plan": "other"}), asked, 40, 100)
    changed = statement(2).model_copy(update={"config": "cd" * 32})
    for ask in (
        lambda: account.reserve(changed, asked, 40, 100),
        lambda: account.reserve_evaluation(changed, asked),
    ):
        with pytest.raises(RefusedError, match="begun with another configuration"):
            ask()
    assert account.head().sequence == 3


def test_an_evaluation_that_was_not_agreed_on_is_refused_in_words(files, identity):
    asked = config(rounds={"count": 4}, evaluation={"every": 2, "epsilon": 0.5})
    account = SiteAccount(files, identity, policy())

    def evaluate(number, attempt):
        changes = {"purpose": "evaluation", "attempt": attempt}
        return account.reserve_evaluation(statement(number).model_copy(update=changes), asked)

    def refused(number, attempt):
        with pytest.raises(RefusedError) as caught:
            evaluate(number, attempt)
        return caught.value.message, caught.value.remedy

    words = (
        "the run has no evaluation at the sites left for this round",
        "what the run may spend on evaluation was fixed before it began",
    )
    assert refused(1, 1) == words
    # No step has noise of its own.
    assert evaluate(2, 2).noise_multiplier is None
    # A round that comes again takes the place of a later one.
    assert evaluate(2, 3).reservation == 3
    assert refused(4, 4) == words


def test_a_sum_that_was_not_settled_on_is_refused_in_words(files, identity):
    account = SiteAccount(files, identity, policy())
    account.reserve(statement(), config(), 40, 100)
    account.settle(statement(), b"these", 2)
    account.require_settled(statement(), b"these")
    with pytest.raises(RefusedError, match="these are not the survivors settled on"):
        account.require_settled(statement(), b"those")
    (settled,) = read_state(files.ledger).settled.values()
    assert settled.sites == 2


def test_the_work_of_a_join_does_not_grow_with_the_square_of_its_rounds(
    files, identity, monkeypatch
):
    """Whoever asks for many evaluations would keep the site at work out."""
    costs, right = [], EvaluationSums.cost.fget
    monkeypatch.setattr(
        EvaluationSums, "cost", property(lambda self: costs.append(1) or right(self))
    )
    account = SiteAccount(files, identity, policy(PERSONS))
    asked = config(evaluation={"every": 1}, rounds={"count": 50})
    account.check_run("run-1", 1, asked, 40, 100)
    mechanism = mechanism_of(asked)
    mechanism.planned(40, 100)
    assert len(costs) == 2
    assert mechanism.evaluation.rounds is mechanism.evaluation.rounds
