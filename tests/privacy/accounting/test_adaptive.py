"""The bound for charges that are chosen by what was seen before."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedllm.errors import BudgetError, ConfigError
from fedllm.privacy.accounting import adaptive
from fedllm.privacy.accounting.accountants import epsilon, upper_bound
from fedllm.privacy.accounting.adaptive import adaptive_epsilon
from fedllm.privacy.accounting.calibration import solve_noise_multiplier
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, PoissonGaussian, Stated, fold
from fedllm.privacy.accounting.renyi import ORDERS, renyi_divergences
from fedllm.privacy.ledger.budget import BudgetGuard, Ceiling

EVENT = st.builds(
    PoissonGaussian,
    st.sampled_from([0.001, 0.05, 0.3, 1.0]),
    st.floats(0.5, 20.0),
    st.integers(1, 200),
)


def test_nothing_costs_nothing_and_no_noise_everything():
    assert adaptive_epsilon(fold([]), 1e-5, 8.0) == 0.0
    assert adaptive_epsilon(fold([NonPrivate()]), 1e-5, 8.0) == math.inf
    assert adaptive_epsilon(fold([Stated(0.5, 1e-5)]), 1e-5, 8.0) == math.inf
    assert adaptive_epsilon(fold([PoissonGaussian(1e-9, 1e-110, 1)]), 1e-5, 8.0) == math.inf
    assert adaptive_epsilon(fold([Gaussian(1e9)]), 0.99, 8.0) == 0.0


def test_all_of_delta_but_a_thousandth_may_be_used_up():
    ran = fold([Gaussian(1e9)])
    used = 1e-5 * (1 - 1e-3)
    assert adaptive_epsilon(replace(ran, stated_delta=used), 1e-5, 8.0) == math.inf
    assert adaptive_epsilon(replace(ran, stated_delta=used * (1 - 1e-9)), 1e-5, 8.0) < math.inf


def test_failures_of_discrete_noise_have_a_thousandth_of_delta_and_no_more():
    """How many there are is chosen as it goes, too, so that it cannot come off what is left."""
    ran = fold([Gaussian(1.0)])
    alone = adaptive_epsilon(ran, 1e-5, 8.0)
    assert adaptive_epsilon(replace(ran, failure=1e-8), 1e-5, 8.0) == alone
    assert adaptive_epsilon(replace(ran, failure=1.001e-8), 1e-5, 8.0) == math.inf


@pytest.mark.parametrize(("delta", "near"), [(0.0, 8.0), (1.0, 8.0), (1e-5, 0.0), (1e-5, math.inf)])
def test_what_is_out_of_range_is_refused(delta, near):
    with pytest.raises(ConfigError, match="out of range"):
        adaptive_epsilon(fold([Gaussian(1.0)]), delta, near)


@pytest.mark.parametrize("near", [0.5, 3.0, 8.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_the_orders_do_not_depend_on_what_was_charged_and_their_weights_are_one(delta, near):
    chosen, weights = adaptive._mixture(delta, near)
    assert weights.sum() == pytest.approx(1.0)
    best = 1 + 2 * math.log(1 / delta) / near
    heaviest = ORDERS[chosen][np.argmax(weights)]
    assert 0.25 * best - 1 <= heaviest <= best * 1.1 + 0.1


def test_the_mixture_worked_out_by_hand():
    """Twelve orders from that of a Gaussian at the ceiling down, each times 0.7 further from 1."""
    for delta, near in ((1e-5, 8.0), (1e-6, 0.1)):
        largest = 2 * math.log(1 / delta) / near
        expected: dict[float, float] = {}
        for number in range(12):
            order = float(min(ORDERS, key=lambda a: abs(math.log((a - 1) / largest / 0.7**number))))
            expected[order] = expected.get(order, 0.0) + math.exp(-0.3 * number)
        chosen, weights = adaptive._mixture(delta, near)
        total = sum(expected.values())
        found = dict(zip(ORDERS[chosen].tolist(), weights.tolist(), strict=True))
        assert found == pytest.approx({order: w / total for order, w in expected.items()})


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENT, min_size=1, max_size=3), st.sampled_from([1e-4, 1e-6]))
def test_it_is_the_root_of_the_mixture_and_above_every_fixed_plan(events, delta):
    folded = fold(events)
    found = adaptive_epsilon(folded, delta, 4.0)
    assert found >= upper_bound(folded, delta) * (1 - 1e-6)
    chosen, weights = adaptive._mixture(delta, 4.0)
    orders, divergences = ORDERS[chosen], renyi_divergences(folded)[chosen]

    def moment(value):
        """The weighted sum, by another way of writing it."""
        terms = [
            math.log(c) + (a - 1) * (value - r) + a * math.log(a) - (a - 1) * math.log(a - 1)
            for a, r, c in zip(orders, divergences, weights, strict=True)
            if math.isfinite(r)
        ]
        return float(np.logaddexp.reduce(terms))

    aim = -math.log(delta * 0.999)
    assert moment(found) >= aim
    assert not found or moment(found * (1 - 1e-6) - 1e-6) <= aim


@given(EVENT, EVENT)
@settings(max_examples=30, deadline=None)
def test_more_harm_never_costs_less(one, other):
    alone = adaptive_epsilon(fold([one]), 1e-5, 8.0)
    assert adaptive_epsilon(fold([one, other]), 1e-5, 8.0) >= alone * (1 - 1e-8)


@pytest.mark.parametrize("ceiling", [400.0, 1e4, 1e7])
@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_a_ceiling_that_bounds_next_to_nothing_refuses_nothing_more(ceiling, rate):
    noise = solve_noise_multiplier(0.9 * ceiling, 1e-5, rate, 8)
    asked = [PoissonGaussian(rate, noise, 8)]
    BudgetGuard().require([], asked, Ceiling(ceiling, 1e-5), "a run")


@pytest.mark.parametrize(
    ("target", "rate", "steps", "times"),
    [(8.0, 1.0, 20, 1.15), (8.0, 0.25, 20, 1.25), (3.0, 0.05, 100, 1.35), (1.0, 0.01, 1000, 1.25)],
)
def test_an_ordinary_run_costs_about_a_fifth_more(target, rate, steps, times):
    noise = solve_noise_multiplier(target, 1e-5, rate, steps)
    found = adaptive_epsilon(fold([PoissonGaussian(rate, noise, steps)]), 1e-5, target)
    assert 1.05 * target < found < times * target


def test_what_was_stated_adds_up():
    run = Gaussian(1.0)
    alone = adaptive_epsilon(fold([run]), 1e-5, 8.0)
    assert adaptive_epsilon(fold([run, Stated(0.5, 0.0)]), 1e-5, 8.0) == pytest.approx(alone + 0.5)
    assert adaptive_epsilon(fold([run, Stated(0.0, 5e-6)]), 1e-5, 8.0) > alone + 0.01


def test_what_discrete_noise_adds_is_counted_by_hand():
    ran = fold([PoissonGaussian(0.25, 1.5, 20)])
    found = adaptive_epsilon(
        replace(ran, stated_delta=1e-6, divergence=0.25, stated=0.5), 1e-5, 8.0
    )
    chosen, weights = adaptive._mixture(1e-5, 8.0)
    orders = ORDERS[chosen]
    logs = np.log(weights) + orders * np.log(orders) - (orders - 1) * np.log(orders - 1)
    left = (0.999e-5 - 1e-6) * math.exp(-0.25)
    value = found - 2 * 0.25 - 0.5
    terms = logs + (orders - 1) * (value - renyi_divergences(ran)[chosen])
    assert float(np.logaddexp.reduce(terms)) == pytest.approx(-math.log(left), abs=1e-6)


# --- who chooses as it goes -------------------------------------------------------------------

DELTA, CEILING = 1e-5, 8.0
WIDE = PoissonGaussian(1.0, 2.0, 1)
RARE = PoissonGaussian(2e-6, 0.15, 1)


def hockey_stick(mu, epsilon):
    """Delta of a Gaussian mechanism at each epsilon (Balle and Wang 2018)."""
    return stats.norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * stats.norm.cdf(
        -mu / 2 - epsilon / mu
    )


def losses_of(event, count, step=0.01):
    """Losses of ``count`` equal charges, rounded down to ``step``, and their masses."""
    rate, noise = event.sampling_rate, event.noise_multiplier
    points = np.linspace(-9, 9 + 1 / noise, 60_001)
    masses = (1 - rate) * stats.norm.pdf(points) + rate * stats.norm.pdf(points - 1 / noise)
    losses = np.logaddexp(math.log1p(-rate), math.log(rate) + points / noise - 0.5 / noise**2)
    places = np.floor(losses / step).astype(int)
    one = np.bincount(places - places.min(), masses / masses.sum())
    total = np.ones(1)
    for _ in range(count):
        total = np.convolve(total, one)
    kept = total > 1e-14
    return ((places.min() * count + np.arange(len(total))) * step)[kept], total[kept]


def test_a_coordinator_that_chooses_as_it_goes_gains_and_is_refused_before_it_gains_more():
    """After six charges it goes on as planned, or with nine rare ones, by the loss it has seen."""
    begun, wide, rare = replace(WIDE, steps=6), replace(WIDE, steps=5), replace(RARE, steps=9)
    plans = {"wide": [begun, wide], "rare": [begun, rare]}
    assert all(epsilon(plan, DELTA).value < CEILING for plan in plans.values())
    step = 0.02
    so_far = np.arange(-16, 24, step)
    mu = math.sqrt(6) / 2
    likely = stats.norm.pdf(so_far, mu**2 / 2, mu) * step
    losses, masses = losses_of(RARE, 9)

    def gains(epsilons):
        """Delta that each way attains, at each loss so far."""
        rest = epsilons["rare"] - so_far
        rare = [(masses * np.maximum(0, -np.expm1(np.minimum(0, e - losses)))).sum() for e in rest]
        return {
            "wide": hockey_stick(math.sqrt(5) / 2, epsilons["wide"] - so_far),
            "rare": np.array(rare),
        }

    found = gains(dict.fromkeys(plans, CEILING))
    for gained in found.values():
        assert (likely * gained).sum() < DELTA, "each is within the ceiling if it is fixed"
    assert (likely * np.maximum(found["wide"], found["rare"])).sum() > 1.7 * DELTA
    bounds = {name: adaptive_epsilon(fold(plan), DELTA, CEILING) for name, plan in plans.items()}
    found = gains(bounds)
    assert (likely * np.maximum(found["wide"], found["rare"])).sum() < DELTA
    for name, plan in plans.items():
        assert bounds[name] > CEILING
        ask = partial(BudgetGuard().require, plan[:1], plan[1:], Ceiling(CEILING, DELTA), "round 2")
        if name == "wide":
            ask()
        else:
            with pytest.raises(BudgetError, match="chooses each charge by what it has seen"):
                ask()


def test_ordinary_runs_that_use_up_a_ceiling_are_not_refused():
    for target, rate, steps in (
        (8.0, 0.25, 20),
        (1.0, 0.01, 1000),
        (0.3, 1.0, 4),
        (4.0, 0.002, 500),
    ):
        noise = solve_noise_multiplier(target, 1e-5, rate, steps)
        BudgetGuard().require(
            [], [PoissonGaussian(rate, noise, steps)], Ceiling(target, 1e-5), "a run"
        )
