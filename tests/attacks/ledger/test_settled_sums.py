"""Forged charges of orders, and forged words on which sum may be opened: signed, but impossible."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.ledger import CEILING, SIGNER, append, content, is_found

from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.privacy.ledger.budget import Charge

ORDER = Charge("settled", 1, "", (Gaussian(20.0),), statement="5" * 64, order_attempt=3)
LATER = replace(ORDER, statement="6" * 64, order_attempt=4)
WORDS = "a" * 64


@pytest.fixture
def charged(ledger):
    """The entry of a charge that belongs to an order."""
    return ledger.reserve(ORDER, CEILING)


def settle(charged, **changed):
    return {"reserve": charged, "survivors": WORDS, "sites": 3, **changed}


def forge(path, kind, body):
    append(path, kind, body)


def test_what_the_program_writes_is_accepted(path, ledger, charged):
    forge(path, "settle", settle(charged))
    assert verify_ledger(path, SIGNER.public_bytes()).head.sequence == charged + 1
    assert ledger.settled(ORDER.statement).survivors == WORDS


@pytest.mark.parametrize(
    "changed",
    [
        {"reserve": 4},
        {"reserve": 1},
        {"reserve": 99},
        {"reserve": -1},
        {"reserve": [12]},
        {"reserve": 12.0},
        {"reserve": "12"},
        {"reserve": None},
        {"survivors": "a" * 63},
        {"survivors": "a" * 66},
        {"survivors": "g" * 64},
        {"survivors": " " + "a" * 63},
        {"survivors": ""},
        {"survivors": None},
        {"survivors": ["site-00", "site-01"]},
        {"sites": 0},
        {"sites": -3},
        {"sites": 3.0},
        {"sites": "3"},
        {"sites": True},
        {"sites": None},
        {"more": 1},
        {"sites": ...},
        {"survivors": ...},
        {"reserve": ...},
    ],
    ids=str,
)
def test_a_sum_that_nobody_can_have_settled_on(path, ledger, charged, changed):
    assert charged == 12
    body = {key: value for key, value in settle(charged, **changed).items() if value is not ...}
    forge(path, "settle", body)
    is_found(path, ledger)


@pytest.mark.parametrize("survivors", [WORDS, "b" * 64], ids=["the same", "others"])
def test_a_round_that_is_settled_twice(path, ledger, charged, survivors):
    forge(path, "settle", settle(charged))
    forge(path, "settle", settle(charged, survivors=survivors))
    is_found(path, ledger)


def test_a_number_that_is_none_commits_nothing(path, ledger, charged):
    forge(path, "commit", {"reserve": float(charged)})
    is_found(path, ledger)


def test_an_attempt_that_is_settled_after_the_next_was_begun(path, ledger, charged):
    ledger.reserve(LATER, CEILING)
    forge(path, "settle", settle(charged))
    is_found(path, ledger)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"order_attempt": 9},
        {"run": "another run", "attempt": 1},
        {"statement": "7" * 64},
        {"statement": "7" * 64, "order_attempt": 2},
        {"statement": "7" * 64, "order_attempt": 2, "round": 8, "attempt": 1},
    ],
    ids=str,
)
def test_an_order_that_is_charged_twice(path, ledger, charged, changed):
    body = content(path, charged)["body"]
    forge(path, "reserve", {**body, "attempt": 2, **changed})
    is_found(path, ledger)


@pytest.mark.parametrize(
    "changed",
    [
        {"statement": "5" * 63},
        {"statement": "x" * 64},
        {"statement": ""},
        {"statement": None},
        {"statement": 5},
        {"statement": ...},
        {"order_attempt": "4"},
        {"order_attempt": 4.0},
        {"order_attempt": True},
        {"order_attempt": None},
        {"order_attempt": 0},
        {"order_attempt": ...},
    ],
    ids=str,
)
def test_a_charge_of_an_order_that_none_can_be(path, ledger, charged, changed):
    wrong = {"attempt": 2, "statement": LATER.statement, "order_attempt": 4, **changed}
    body = {**content(path, charged)["body"], **wrong}
    forge(path, "reserve", {key: value for key, value in body.items() if value is not ...})
    is_found(path, ledger)


def test_the_next_attempt_of_an_order_is_one(path, ledger, charged):
    wrong = {"attempt": 2, "statement": LATER.statement, "order_attempt": 4}
    forge(path, "reserve", {**content(path, charged)["body"], **wrong})
    assert verify_ledger(path, SIGNER.public_bytes()).head.sequence == charged + 1


def test_a_sum_of_one_site_may_be_settled_on(path, charged):
    forge(path, "settle", settle(charged, sites=1))
    assert verify_ledger(path, SIGNER.public_bytes()).head.sequence == charged + 1
