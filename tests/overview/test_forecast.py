"""How long a budget lasts: what the ledger itself would still take, and no guess beyond it."""

from __future__ import annotations

import pytest
from support.overview import CEILING, ROUND, Site

from fedllm.config.site_policy import BudgetSection
from fedllm.errors import BudgetError
from fedllm.overview import forecast
from fedllm.overview.forecast import Forecast, Forecaster
from fedllm.overview.wording import forecast_words
from fedllm.privacy.accounting.events import Gaussian, NonPrivate
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.charges import Carried
from fedllm.privacy.ledger.ledger import Ledger


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def told(site, ceiling=CEILING, forecaster=None):
    return (forecaster or Forecaster()).look(read_state(site.ledger), "", ceiling)


def test_so_many_rounds_as_it_says_are_charged_and_the_next_is_refused(site):
    event = Gaussian(2.0)
    site.charge([1, 2], event)
    found = told(site)
    assert found.kind == "rounds"
    count = found.rounds or 0
    assert 2 < count < 100
    site.charge(range(3, 3 + count), event)
    assert told(site).rounds == 0
    with pytest.raises(BudgetError):
        site.charge([99], event)


def test_each_round_that_is_charged_is_one_less(site):
    forecaster = Forecaster()
    site.charge([1], Gaussian(2.0))
    first = told(site, forecaster=forecaster).rounds
    for number in (2, 3, 4):
        site.charge([number], Gaussian(2.0))
        assert told(site, forecaster=forecaster).rounds == first - number + 1


def test_nothing_is_worked_out_twice_while_nothing_is_charged(site, monkeypatch):
    site.charge([1])
    forecaster = Forecaster()
    first = told(site, forecaster=forecaster)
    monkeypatch.setattr(forecast, "_Room", None)
    assert told(site, forecaster=forecaster) == first


def test_the_smaller_room_of_both_views_counts(site):
    site.charge([1], colluder_events=(Gaussian(1.0),))
    alone = told(site, Ceiling(8.0, 1e-5, 12.0)).rounds
    assert alone is not None
    assert alone < (told(site, Ceiling(8.0, 1e-5)).rounds or 0)


def test_a_budget_that_lasts_very_long_is_said_to(site, monkeypatch):
    monkeypatch.setattr(forecast, "MOST_ROUNDS", 5)
    site.charge([1])
    found = told(site)
    assert (found.rounds, found.more) == (5, True)
    assert "more than 5 rounds like round 1 of run 'ward'" in forecast_words(found)


def test_an_evaluation_is_no_round_to_go_by(site):
    site.charge([1])
    before = told(site).rounds
    site.charge([1], Gaussian(1.0), purpose="evaluation")
    found = told(site)
    assert (found.like_round, found.alike) == (1, True)
    assert (found.rounds or 0) < (before or 0)


def test_rounds_that_cost_differently_make_a_rough_guess(site):
    site.charge([1], Gaussian(3.0))
    site.charge([2])
    found = told(site)
    assert not found.alike
    assert "a rough guess" in forecast_words(found)
    assert "rough" not in forecast_words(Forecast("rounds", 3, like_round=1, like_run="ward"))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Forecast("rounds", 14, False, 2, "ward"), "ends in 14 more rounds, each like round 2"),
        (Forecast("rounds", 1, False, 2, "ward"), "ends in 1 more round, each"),
        (Forecast("rounds", 0, False, 2, "ward"), "at its end: another round like round 2"),
        (Forecast("nothing charged"), "cannot be told before a first round"),
        (Forecast("carried only"), "cannot be told: what was carried over"),
        (Forecast("unlimited"), "no limit any more"),
        (Forecast("no ceiling"), "the policy sets no ceiling"),
    ],
)
def test_it_is_said_in_words_also_where_nobody_can_tell(found, words):
    assert words in forecast_words(found)


def test_where_nobody_can_tell_nothing_is_counted(site):
    ledger = Ledger.open(site.ledger, "anne", site._identity)
    assert told(site) == Forecast("nothing charged")
    ledger.carry([Carried(("00" * 32,), "", "record", (ROUND,), (ROUND,))])
    assert told(site) == Forecast("carried only")
    site.charge([1])
    assert told(site, Ceiling(float("inf"), 1e-5)) == Forecast("no ceiling")
    ledger.reserve(Charge("x", 1, "", (NonPrivate(),)), Ceiling(float("inf"), 1e-5))
    assert told(site) == Forecast("unlimited")


def test_a_policy_is_what_the_forecast_goes_by(site):
    site.charge([1], Gaussian(2.0))
    small, large = (BudgetSection(epsilon=value) for value in (4.0, 8.0))
    found = [told(site, Ceiling(one.epsilon, one.delta)).rounds or 0 for one in (small, large)]
    assert found[0] < found[1]
