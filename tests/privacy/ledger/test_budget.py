"""The budget is refused before it is exceeded, and never by a shortcut that is wrong."""

import math

import pytest

from fedllm.errors import BudgetError, ConfigError
from fedllm.privacy.accounting.adaptive import adaptive_epsilon
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, PoissonGaussian, fold
from fedllm.privacy.ledger import budget
from fedllm.privacy.ledger.budget import BudgetGuard, Ceiling, Charge

CEILING = Ceiling(2.0, 1e-5)
ROUND = Gaussian(10.0)  # 25 of them fit under the ceiling


def test_refusal_names_public_numbers():
    with pytest.raises(BudgetError) as caught:
        BudgetGuard().require([ROUND] * 20, [ROUND] * 10, CEILING, "rounds 3 to 12 of run 'x'")
    before, after = (budget.epsilon([ROUND] * count, 1e-5).value for count in (20, 30))
    assert caught.value.message == (
        f"rounds 3 to 12 of run 'x' would bring the site's account to epsilon {after:.4g}; its "
        f"ceiling is 2 at delta 1e-05, of which {before:.4g} is spent and {2 - before:.4g} is left"
    )
    assert caught.value.remedy.startswith("plan the run with a smaller privacy.epsilon")
    assert caught.value.exit_code == 3


def test_of_a_ceiling_that_was_lowered_nothing_is_left_and_colluders_are_named():
    lowered = Ceiling(8.0, 1e-5, 0.5)
    with pytest.raises(BudgetError) as caught:
        BudgetGuard().require([ROUND] * 20, [ROUND], lowered, "round 2", "colluders")
    assert " for everyone else colluding; its ceiling is 0.5 at " in caught.value.message
    assert caught.value.message.endswith("is spent and 0 is left")
    BudgetGuard().require([ROUND] * 20, [ROUND], lowered, "round 2")


def test_what_a_coordinator_may_choose_has_twice_the_ceiling_and_2():
    ceiling = Ceiling(3.0, 1e-5, 5.0)
    assert (ceiling.adaptive_limit("sums"), ceiling.adaptive_limit("colluders")) == (8.0, 12.0)
    rare = [PoissonGaussian(2e-6, 0.15, 9)]
    wide = [PoissonGaussian(1.0, 2.0, 6)]
    with pytest.raises(BudgetError, match="chooses each charge") as caught:
        BudgetGuard().require(wide, rare, Ceiling(8.0, 1e-5), "round 2")
    chosen = adaptive_epsilon(fold([*wide, *rare]), 1e-5, 8.0)
    assert caught.value.message == (
        "round 2 would let a coordinator that chooses each charge by what it has seen bring the "
        f"site's account to epsilon {chosen:.4g}; the most is 18, twice the ceiling and 2 more"
    )
    assert caught.value.remedy.startswith("plan the run with larger batches")


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


@pytest.mark.parametrize(
    "values",
    [(0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1.0), (1, 1e-5, 0), (1, 1e-5, math.nan)],
)
def test_impossible_ceiling(values):
    with pytest.raises(ConfigError) as caught:
        Ceiling(*values)
    assert caught.value.message.startswith(f"a ceiling of epsilon {values[0]!r} ")
    assert caught.value.remedy == "epsilons must be positive and delta in (0, 1)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": ""},
        {"round": -1},
        {"events": ()},
        {"delta": 0.0},
        {"delta": 1.0},
        {"purpose": "fun"},
    ],
)
def test_impossible_charge(wrong):
    values = {"run": "r", "round": 0, "account": "", "events": (ROUND,)}
    Charge(**values)
    with pytest.raises(ConfigError, match=r"^a charge ") as caught:
        Charge(**{**values, **wrong})
    assert caught.value.remedy.startswith(("use ", "see "))
