"""An order is charged once, and one sum of it may be opened: the ledger holds both."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.ledger import CEILING, SIGNER

from fedllm.errors import FedllmError, RepeatError
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import export_ledger, read_state, verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.charges import SettledOn
from fedllm.privacy.ledger.entries import LedgerRefusal
from fedllm.privacy.ledger.ledger import Ledger

FIRST, SECOND, THIRD = "1" * 64, "2" * 64, "3" * 64
WORDS, OTHERS = "a" * 64, "b" * 64
CHARGE = Charge("run", 1, "", (Gaussian(20.0),), statement=FIRST, order_attempt=1)
# Enough for one such charge, and too little for two.
FOR_ONE = Ceiling(1.2 * epsilon(CHARGE.events, 1e-5).value, 1e-5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site.sqlite"


@pytest.fixture
def ledger(path):
    return Ledger.open(path, "site-00", SIGNER)


def reopened(path):
    return Ledger.open(path, "site-00", SIGNER)


@pytest.mark.parametrize(
    "again",
    [
        CHARGE,
        replace(CHARGE, order_attempt=9),
        replace(CHARGE, round=2, run="another run"),
        replace(CHARGE, statement=THIRD, order_attempt=1),
        replace(CHARGE, statement=THIRD, order_attempt=2, round=7),
        replace(CHARGE, statement=THIRD, order_attempt=0),
        replace(CHARGE, statement=THIRD, order_attempt=-1),
    ],
    ids=str,
)
def test_an_order_or_an_older_attempt_is_never_charged_again(path, ledger, again):
    ledger.reserve(CHARGE, CEILING)
    ledger.reserve(replace(CHARGE, statement=SECOND, order_attempt=2), CEILING)
    head = ledger.head()
    about = (again.run, again.purpose, again.statement, again.order_attempt)
    for one in (ledger, reopened(path)):
        with pytest.raises(RepeatError, match="before"):
            one.reserve(again, CEILING)
        with pytest.raises(RepeatError, match="before"):
            one.require_new(*about)
    assert reopened(path).head() == head


def test_attempts_are_numbered_by_run_and_purpose(ledger):
    ledger.reserve(replace(CHARGE, order_attempt=5), CEILING)
    for number, more in enumerate(({"run": "other"}, {"purpose": "evaluation"}), start=1):
        charge = replace(CHARGE, statement=f"{number}" * 63 + "0", **more)
        ledger.require_new(charge.run, charge.purpose, charge.statement, 1)
        ledger.reserve(charge, CEILING)


def test_attempts_are_numbered_from_1(ledger):
    with pytest.raises(RepeatError):
        ledger.reserve(replace(CHARGE, order_attempt=0), CEILING)
    ledger.reserve(CHARGE, CEILING)


def test_charges_that_belong_to_no_statement_may_be_alike(ledger):
    charge = replace(CHARGE, statement="", order_attempt=0)
    assert ledger.reserve(charge, CEILING) != ledger.reserve(charge, CEILING)


def test_another_program_with_the_same_ledger_sees_what_was_charged(path, ledger):
    other = reopened(path)
    ledger.reserve(CHARGE, CEILING)
    with pytest.raises(RepeatError):
        other.reserve(CHARGE, CEILING)


@pytest.mark.parametrize(
    "refused",
    [
        lambda other: other.check([replace(CHARGE, statement=SECOND)], FOR_ONE),
        lambda other: other.require_new("run", "training", FIRST, 1),
        lambda other: other.require_config("run", "d" * 64),
    ],
    ids=["check", "require_new", "require_config"],
)
def test_who_only_asks_sees_what_another_program_has_just_written(path, ledger, refused):
    asking, together = reopened(path), reopened(path)
    ledger.reserve(replace(CHARGE, config="c" * 64), CEILING)
    with pytest.raises(FedllmError):
        refused(asking)
    with pytest.raises(FedllmError), together.one_look():
        refused(together)
    answering = reopened(path)
    ledger.settle(FIRST, WORDS, 3)
    assert answering.settled(FIRST).sites == 3
    for method in (Ledger.head, lambda one: one.events(""), lambda one: one.events_of_run("run")):
        asking = reopened(path)
        ledger.reserve(replace(CHARGE, statement="", order_attempt=0, config="c" * 64), CEILING)
        assert method(asking) == method(ledger)


def test_after_one_look_each_question_looks_again(path, ledger):
    asking = reopened(path)
    with asking.one_look():
        ledger.reserve(CHARGE, CEILING)
        assert asking.head() == asking.last != ledger.head()
        with pytest.raises(RepeatError):
            asking.reserve(CHARGE, CEILING)
    assert asking.head() == ledger.head()
    ledger.settle(FIRST, WORDS, 3)
    assert asking.settled(FIRST).sites == 3


def test_one_sum_is_settled_on_however_often_it_is_asked(path, ledger):
    reserved = ledger.reserve(CHARGE, CEILING)
    with pytest.raises(LedgerRefusal, match="has not settled"):
        ledger.settled(FIRST)
    ledger.settle(FIRST, WORDS, 3)
    head = ledger.head()
    for one in (ledger, reopened(path)):
        one.settle(FIRST, WORDS, 3)
        with pytest.raises(LedgerRefusal, match="other survivors"):
            one.settle(FIRST, OTHERS, 2)
        assert one.settled(FIRST) == SettledOn(WORDS, 3)
    assert reopened(path).head() == head
    assert read_state(path).settled == {reserved: SettledOn(WORDS, 3)}


@pytest.mark.parametrize("statement", [SECOND, ""])
def test_what_was_not_charged_is_not_settled(ledger, statement):
    ledger.reserve(CHARGE, CEILING)
    ledger.reserve(replace(CHARGE, run="before", statement="", order_attempt=0), CEILING)
    for ask in (lambda: ledger.settle(statement, WORDS, 3), lambda: ledger.settled(statement)):
        with pytest.raises(LedgerRefusal, match="did not take part"):
            ask()


def test_a_later_attempt_ends_the_one_before(ledger):
    ledger.reserve(CHARGE, CEILING)
    ledger.settle(FIRST, WORDS, 3)
    evaluation = replace(CHARGE, statement=THIRD, purpose="evaluation")
    ledger.reserve(evaluation, CEILING)
    assert ledger.settled(FIRST).sites == 3, "an evaluation is another matter"
    ledger.reserve(replace(CHARGE, statement=SECOND, order_attempt=2), CEILING)
    for ask in (lambda: ledger.settle(FIRST, WORDS, 3), lambda: ledger.settled(FIRST)):
        with pytest.raises(LedgerRefusal, match="gone on"):
            ask()


def test_an_export_holds_what_was_settled_on(path, ledger, tmp_path):
    ledger.commit(ledger.reserve(CHARGE, CEILING))
    ledger.settle(FIRST, WORDS, 3)
    out = tmp_path / "export.jsonl"
    export_ledger(path, out)
    assert verify_ledger(out, SIGNER.public_bytes(), [ledger.head()]).head == ledger.head()
    assert list(read_state(out).settled.values()) == [SettledOn(WORDS, 3)]
