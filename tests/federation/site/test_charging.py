"""What a site writes into its ledger before it reads a record."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.federation import small_config

from fedllm.config import AllowSection, BudgetSection, DataSection, SitePolicy
from fedllm.errors import BudgetError, RefusedError
from fedllm.federation.protocol.messages import RoundStatement
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.files import SiteFiles
from fedllm.identity.keys import Identity
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


@pytest.mark.parametrize("task", ["classification", "causal", "instruction"])
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
