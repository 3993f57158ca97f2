"""The budget is refused before it is exceeded, and never by a shortcut that is wrong."""

import math

import pytest

from fedllm.errors import BudgetError, ConfigError
from fedllm.privacy.accounting.events import Gaussian, NonPrivate
from fedllm.privacy.ledger import budget
from fedllm.privacy.ledger.budget import BudgetGuard, Ceiling, Charge

CEILING = Ceiling(2.0, 1e-5)
ROUND = Gaussian(10.0)  # 25 of them fit under the ceiling


def test_refusal_names_public_numbers():
    with pytest.raises(BudgetError) as caught:
        BudgetGuard().require([ROUND] * 20, [ROUND] * 10, CEILING, "rounds 3 to 12 of run 'x'")
    text = str(caught.value)
    assert "rounds 3 to 12 of run 'x'" in text
    assert "ceiling is 2 at delta 1e-05" in text
    assert "is left" in text
    assert caught.value.exit_code == 3


def test_exactly_as_many_as_fit():
    guard, spent = BudgetGuard(), []
    with pytest.raises(BudgetError):
        for _ in range(100):
            guard.require(spent, [ROUND], CEILING, "a round")
            spent.append(ROUND)
    fits = budget.epsilon(spent, CEILING.delta).value
    assert fits <= 2.0 < budget.epsilon([*spent, ROUND], CEILING.delta).value


def test_rounds_of_a_checked_run_need_no_accountant(monkeypatch):
    guard = BudgetGuard()
    guard.require([], [ROUND] * 10, CEILING, "the run")

    def fail(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(budget, "epsilon", fail)
    for done in range(10):
        guard.require([ROUND] * done, [ROUND], CEILING, "a round")
    with pytest.raises(AssertionError):
        guard.require([ROUND] * 10, [ROUND], CEILING, "one more")
    with pytest.raises(AssertionError):
        guard.require([], [ROUND], Ceiling(1.0, 1e-5), "under a lower ceiling")
    with pytest.raises(AssertionError):
        guard.require([Gaussian(3.0)], [ROUND], CEILING, "after something else")


def test_no_privacy_is_refused_unless_allowed():
    with pytest.raises(BudgetError, match="infinite"):
        BudgetGuard().require([], [NonPrivate()], CEILING, "a round")
    with pytest.raises(BudgetError):
        BudgetGuard().require([NonPrivate()], [ROUND], CEILING, "a round")
    BudgetGuard().require([NonPrivate()], [NonPrivate()], Ceiling(math.inf, 1e-5), "a round")


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (1, 0)])
def test_impossible_ceiling(epsilon, delta):
    with pytest.raises(ConfigError):
        Ceiling(epsilon, delta)


@pytest.mark.parametrize(
    "wrong",
    [{"run": ""}, {"round": -1}, {"events": ()}, {"delta": 0.0}, {"purpose": "fun"}],
)
def test_impossible_charge(wrong):
    values = {"run": "r", "round": 0, "account": "", "events": (ROUND,)}
    with pytest.raises(ConfigError):
        Charge(**{**values, **wrong})
