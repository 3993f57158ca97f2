"""Accounting against closed forms, other libraries, Monte Carlo and extremes."""

import math
import warnings
from dataclasses import asdict, replace

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from support.dp_events import to_dp_event

from fedllm.errors import ConfigError
from fedllm.privacy.accounting import accountants as accounting
from fedllm.privacy.accounting import renyi
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import (
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    fold,
)
from fedllm.privacy.accounting.gaussian import (
    gaussian_epsilon,
    gaussian_log_delta,
    one_step_epsilon,
)
from fedllm.privacy.accounting.renyi import renyi_epsilon


def test_known_values_of_all_accountants():
    estimate = epsilon([PoissonGaussian(0.1, 1.0, 100)], 1e-5)
    assert estimate.pld == pytest.approx(7.0466, abs=2e-4)
    assert estimate.prv == pytest.approx(7.0466, abs=0.02)
    assert estimate.rdp == pytest.approx(7.90, abs=0.01)
    assert estimate.value == estimate.pld
    assert estimate.lower <= 7.0466


def test_one_step_has_a_closed_form():
    # Balle, Barthe, Gaboardi 2018: delta(eps) = q * delta_gauss(log(1 + (e^eps - 1) / q)).
    rate, noise = 0.3, 1.0
    value = epsilon([PoissonGaussian(rate, noise, 1)], 1e-5).value
    inner = math.log1p(math.expm1(value) / rate)
    delta = rate * (
        norm.cdf(0.5 / noise - inner * noise)
        - math.exp(inner) * norm.cdf(-0.5 / noise - inner * noise)
    )
    assert delta == pytest.approx(1e-5, rel=2e-3)


@pytest.mark.parametrize(
    ("noise", "count", "delta"), [(1.0, 1, 1e-5), (5.0, 30, 1e-6), (0.5, 1, 1e-5), (50.0, 1, 1e-3)]
)
def test_unsampled_gaussian_is_the_analytic_one(noise, count, delta):
    # Balle and Wang 2018, theorem 8, written out anew.
    mu = math.sqrt(count) / noise
    value = epsilon([PoissonGaussian(1.0, noise, count)], delta).value
    exact = norm.cdf(mu / 2 - value / mu) - math.exp(value) * norm.cdf(-mu / 2 - value / mu)
    assert exact == pytest.approx(delta, rel=1e-4) or (value == 0 and exact <= delta)
    assert epsilon([Gaussian(noise, count)], delta).value == value


def test_delta_by_monte_carlo():
    # Draws of the composed privacy loss need no accountant: delta(eps) = E[(1 - e^(eps-L))+].
    rate, noise, steps = 0.2, 0.9, 12
    value = epsilon([PoissonGaussian(rate, noise, steps)], 1e-2).value
    generator = np.random.default_rng(7)
    draws = generator.normal(0, noise, (400_000, steps))
    draws += generator.random(draws.shape) < rate
    loss = np.log1p(rate * np.expm1((2 * draws - 1) / (2 * noise**2))).sum(axis=1)
    deltas = np.maximum(0, -np.expm1(value - loss))
    error = deltas.std() / math.sqrt(len(deltas))
    assert abs(deltas.mean() - 1e-2) < 5 * error


@pytest.mark.parametrize("other", ["pld", "rdp"])
def test_mixed_events_agree_with_dp_accounting(other):
    events = [
        PoissonGaussian(0.05, 0.8, 40),
        PoissonGaussian(0.1, 1.1, 30),
        Gaussian(6.0, 12),
    ]
    estimate = epsilon(events, 1e-6)
    accountant = (
        dp_accounting.pld.PLDAccountant() if other == "pld" else dp_accounting.rdp.RdpAccountant()
    )
    for event in events:
        accountant.compose(to_dp_event(event))
    expected = accountant.get_epsilon(1e-6)
    ours = estimate.pld if other == "pld" else estimate.rdp
    assert ours == pytest.approx(expected, rel=2e-3)


def test_many_distinct_rounds_stay_tight_enough():
    events = [PoissonGaussian(0.01, 1 + i / 100, 5) for i in range(40)]
    estimate = epsilon(events, 1e-5)
    low = epsilon([PoissonGaussian(0.01, 1.4, 200)], 1e-5).value
    high = epsilon([PoissonGaussian(0.01, 1.0, 200)], 1e-5).value
    assert low < estimate.value < high
    assert estimate.value <= estimate.rdp


@settings(max_examples=25)
@given(
    rate=st.sampled_from([0.001, 0.01, 0.1, 0.4, 0.99, 1.0]),
    noise=st.sampled_from([0.4, 0.7, 1.0, 2.0, 10.0]),
    steps=st.integers(1, 3000),
    delta=st.sampled_from([1e-3, 1e-5, 1e-8]),
    change=st.sampled_from(["steps", "rate", "noise", "delta", "event"]),
)
def test_more_harm_never_costs_less(rate, noise, steps, delta, change):
    less = [PoissonGaussian(rate, noise, steps)]
    more = {
        "steps": [PoissonGaussian(rate, noise, steps + max(1, steps // 5))],
        "rate": [PoissonGaussian(min(1.0, rate * 1.2), noise, steps)],
        "noise": [PoissonGaussian(rate, noise * 0.9, steps)],
        "delta": less,
        "event": [*less, Gaussian(20.0)],
    }[change]
    smaller_delta = delta / 3 if change == "delta" else delta
    # The grid of the main accountant may differ, upwards, by a fraction of a percent.
    slack = 1 + 2e-3
    low = accounting.upper_bound(fold(less), delta)
    assert low <= accounting.upper_bound(fold(more), smaller_delta) * slack + 1e-3


@pytest.mark.parametrize(
    "events",
    [
        [PoissonGaussian(0.1, 0.0, 1)],
        [Gaussian(0.0)],
        [NonPrivate()],
        [PoissonGaussian(0.1, 1.0, 10), NonPrivate()],
        [PoissonGaussian(1e-9, 1e-110, 1)],
    ],
)
def test_no_noise_is_infinite(events):
    assert epsilon(events, 1e-5).value == math.inf


@pytest.mark.parametrize(
    "events",
    [[], [PoissonGaussian(0.5, 1.0, 0)], [PoissonGaussian(0.0, 1.0, 10)], [Gaussian(1, 0)]],
)
def test_nothing_happened_costs_nothing(events):
    nothing = dict.fromkeys(("value", "pld", "prv", "rdp", "closed_form", "lower"), 0.0)
    assert asdict(epsilon(events, 1e-5)) == nothing


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [
        (0.1, 1.0, 100, 1e-11),
        (0.1, 1.0, 100, 1e-300),
        (0.1, 0.01, 1, 1e-5),  # Opacus's PRV says 707 where at least 5,368 is true
        (0.1, 0.001, 3, 1e-5),
        (1.0, 1e-3, 1, 1e-5),
        (1.0, 1e9, 1, 1e-5),
        (0.5, 1e4, 10, 1e-5),
        (0.1, 1.0, 10**6, 1e-5),
        (0.01, 50.0, 10**12, 1e-5),
        (1e-9, 0.5, 10**6, 1e-5),  # Rényi by a library says 0
        (1.0 - 1e-16, 1.0, 10, 1e-5),
        (1e-300, 1.0, 10**12, 1e-5),
        (0.3, 1.0, 10, 0.999),
    ],
)
def test_extremes_fall_to_the_safe_side(rate, noise, steps, delta):
    estimate = epsilon([PoissonGaussian(rate, noise, steps)], delta)
    assert not math.isnan(estimate.value)
    # One step alone is a lower bound for all of them, in closed form.
    one = 0.0
    if delta < rate:
        unsampled = gaussian_epsilon(1 / noise, delta / rate)
        one = (
            max(0.0, unsampled + math.log(rate))
            if unsampled > 500
            else math.log1p(rate * math.expm1(unsampled))
        )
    assert estimate.value >= one * (1 - 1e-4)
    # Sampling never costs more than not sampling.
    unsampled = gaussian_epsilon(math.sqrt(steps) / noise, delta)
    assert estimate.value <= unsampled * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("delta", [0, 1, -1e-5, math.nan, 2])
def test_impossible_delta_is_refused(delta):
    with pytest.raises(ConfigError):
        epsilon([Gaussian(1.0)], delta)


def test_the_cross_check_of_many_steps_is_coarser_and_says_so():
    # 2,000 steps would need two million points at an error of 0.01; 400,000 give 0.046.
    estimate = epsilon([PoissonGaussian(0.1, 1.0, 2000)], 1e-5)
    assert estimate.pld == pytest.approx(39.5887, abs=1e-3)
    assert estimate.prv == pytest.approx(39.6359, abs=2e-3)
    assert estimate.lower == pytest.approx(39.5405, abs=2e-3)


def test_a_cross_check_that_would_say_nothing_is_left_out(monkeypatch):
    asked = []
    monkeypatch.setattr(
        accounting, "_opacus_interval", lambda events, *_: asked.append(len(events)) or (0.0, 99.0)
    )
    four = [PoissonGaussian(0.1, noise, 7) for noise in (1.0, 1.1, 1.2)] + [Gaussian(9.0)]
    assert epsilon(four, 1e-5).prv == 99.0
    assert epsilon([*four, PoissonGaussian(0.1, 1.3, 7)], 1e-5).prv is None  # too many
    assert epsilon([PoissonGaussian(0.001, 30.0, 1)], 1e-5).prv is None  # error above epsilon
    assert epsilon(four, 1e-11).prv is None  # delta below what numbers can hold
    assert asked == [4]


def test_accountants_that_disagree_give_the_larger(monkeypatch):
    monkeypatch.setattr(accounting, "_pld_epsilon", lambda folded, delta: 0.5)
    estimate = epsilon([PoissonGaussian(0.1, 1.0, 101)], 1e-5)
    assert estimate.pld == 0.5
    assert estimate.value >= 7.05


def test_a_failing_accountant_is_replaced_not_trusted(monkeypatch):
    def fail(*_):
        raise ValueError("grid")

    monkeypatch.setattr(accounting, "_compose", fail)
    monkeypatch.setattr(accounting, "_opacus_interval", fail)
    estimate = epsilon([PoissonGaussian(0.1, 1.0, 102)], 1e-5)
    assert estimate.pld is None
    assert estimate.prv is None
    assert estimate.value == estimate.rdp > 7


def test_renyi_holds_for_tiny_divergences():
    # 1e-9 sampled a million times; rounding must not turn into an epsilon of zero.
    assert renyi_epsilon(fold([PoissonGaussian(1e-9, 0.5, 10**6)]), 1e-12) > 0


def test_renyi_is_small_where_noise_is_large():
    assert renyi_epsilon(fold([PoissonGaussian(1.0, 100.0, 1)]), 1e-5) < 0.1


def test_gaussian_bound_is_monotone_and_inverts_delta():
    for mu in (1e-6, 0.01, 1.0, 30.0, 1e4):
        for delta in (1e-3, 1e-9, 1e-100):
            value = gaussian_epsilon(mu, delta)
            assert value <= gaussian_epsilon(mu * 1.01, delta)
            if value > 0:
                assert gaussian_log_delta(mu, value) <= math.log(delta)


def test_accountant_restarted_each_round_would_differ():
    rounds = [[PoissonGaussian(0.1, 1.0, 10)]] * 10
    restarted = max(epsilon(events, 1e-5).value for events in rounds)
    whole = epsilon([event for events in rounds for event in events], 1e-5).value
    assert whole == pytest.approx(7.0466, abs=1e-3)
    assert restarted < whole / 2


@pytest.mark.parametrize("rate", [1e-9, 1e-3])
def test_a_log_moment_is_above_the_exact_one_by_its_rounding(rate):
    exact = math.log1p(rate**2 * math.expm1(1.0))  # of order 2, at noise 1
    found = float(renyi._log_moments(rate, 1.0)[len(renyi._FRACTIONAL_ORDERS)])
    assert 0.5e-11 < found - exact < 1.5e-11


def test_the_rounding_of_a_log_moment_grows_with_it():
    exact = math.log1p(0.25 * math.expm1(100.0))  # of order 2, at noise 0.1: about 98.6
    found = float(renyi._log_moments(0.5, 0.1)[len(renyi._FRACTIONAL_ORDERS)])
    assert 0.5e-9 < found - exact < 1.5e-9


def test_a_tiny_mu_has_the_closed_form_or_a_bound():
    assert gaussian_epsilon(5e-10, 3e-10) == 0.0  # delta is above 0.4 mu
    assert gaussian_epsilon(5e-10, 0.4 * 5e-10) == 0.0
    bound = 5e-10 * math.sqrt(-2 * math.log(1e-10))
    assert gaussian_epsilon(5e-10, 1e-10) == pytest.approx(bound, rel=1e-6)
    # From 1e-9 on the exact one, about mu here, takes the place of the bound, 6.8 mu.
    assert 1.1 < gaussian_epsilon(1.5e-9, 1e-10) / 1.5e-9 < 1.3
    assert 0.5 < gaussian_epsilon(1e-9, 1e-10) / 1e-9 < 1.1


def test_what_is_charged_for_discrete_noise_and_statements_is_added_by_hand():
    folded = replace(
        fold([PoissonGaussian(0.1, 1.0, 100)]),
        failure=2e-7,
        divergence=0.25,
        stated=0.5,
        stated_delta=8e-7,
    )
    ideal, delta, extra = accounting._idealised(folded, 1e-5)
    assert ideal == fold([PoissonGaussian(0.1, 1.0, 100)])
    assert delta == pytest.approx(9e-6 * math.exp(-0.25), rel=1e-12)
    assert extra == 2 * 0.25 + 0.5
    inner = accounting.upper_bound(ideal, delta)
    assert accounting.upper_bound(folded, 1e-5) == inner + 1.0
    assert accounting.quick_bound(folded, 1e-5) == accounting.quick_bound(ideal, delta) + 1.0


def test_what_was_only_stated_adds_up_and_may_use_up_delta():
    from fedllm.privacy.accounting.events import Stated

    steps = [PoissonGaussian(0.1, 1.0, 100)]
    stated = [Stated(0.5, 1e-6), Stated(0.25, 2e-6)]
    alone = epsilon(steps, 1e-5 - 3e-6).value
    assert epsilon([*steps, *stated], 1e-5).value == pytest.approx(alone + 0.75, rel=1e-9)
    assert epsilon([Stated(0.5, 1e-5)], 1e-5).value == math.inf
    assert epsilon([Stated(0.5, 0.0)], 1e-5).value == 0.5


def test_five_kinds_of_steps_are_all_composed():
    """With four distributions and more, a pair that is left out or doubled shows."""
    events = [PoissonGaussian(0.1, noise, 3) for noise in (0.7, 0.9, 1.3, 2.0)] + [Gaussian(5.0)]
    for count in (4, 5):
        accountant = dp_accounting.pld.PLDAccountant()
        for event in events[:count]:
            accountant.compose(to_dp_event(event))
        expected = accountant.get_epsilon(1e-6)
        assert epsilon(events[:count], 1e-6).pld == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("steps", [1, 7, 1000, 1001, 2000])
def test_blocks_of_steps_are_composed_like_steps(steps):
    from dp_accounting.pld import privacy_loss_distribution as pld

    one = pld.from_gaussian_mechanism(2.0, sampling_prob=0.01, value_discretization_interval=0.01)
    exact = one.self_compose(steps).get_epsilon_for_delta(1e-6)
    found = accounting._compose(fold([PoissonGaussian(0.01, 2.0, steps)]), 0.01)
    assert found.get_epsilon_for_delta(1e-6) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 0.1), (0.5, 0.1), (0.3, 0.5), (0.9, 3.0)])
def test_moments_of_fractional_orders_are_the_integrals(rate, noise):
    found = renyi._fractional(rate, noise)
    assert renyi._FRACTIONAL_ORDERS[[0, 9, -1]] == pytest.approx([1.1, 2.1, 11.9])
    assert len(found) == 99
    x = np.arange(-20, 20 + 12 / noise, 0.002)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + x / noise - 0.5 / noise**2)
    for order, moment in zip(renyi._FRACTIONAL_ORDERS[::14], found[::14], strict=True):
        terms = order * ratio - 0.5 * x**2
        top = terms.max()
        exact = top + math.log(np.exp(terms - top).sum() * 0.002 / math.sqrt(2 * math.pi))
        assert moment == pytest.approx(exact, rel=1e-11, abs=1e-11)


def test_moments_of_whole_orders_are_the_sums():
    rate, noise = 0.3, 1.7
    found = renyi._whole(rate, noise)
    for order, moment in list(zip(renyi._WHOLE_ORDERS, found, strict=True))[:40:7]:
        exact = sum(
            math.comb(order, k) * rate**k * (1 - rate) ** (order - k)
            * math.exp(k * (k - 1) / (2 * noise**2))
            for k in range(order + 1)
        )  # fmt: skip
        assert moment == pytest.approx(math.log(exact), rel=1e-9, abs=1e-12)


def test_orders_are_dense_where_they_matter_most():
    orders = renyi._WHOLE_ORDERS
    assert orders[:63] == list(range(2, 65))
    assert orders[63:79] == list(range(68, 129, 4))
    assert orders[79:] == [*range(144, 513, 16), 640, 768, 1024]


def test_little_noise_counts_at_fractional_orders_as_if_nothing_was_sampled():
    """The grid would be large, and sampling only helps."""
    orders = renyi._FRACTIONAL_ORDERS
    unsampled = orders * (orders - 1) / (2 * 0.0999**2)
    assert renyi._fractional(0.5, 0.0999) == pytest.approx(unsampled)
    sampled = renyi._fractional(0.5, 0.1)
    assert (sampled < unsampled).all()
    assert sampled == pytest.approx(unsampled, rel=0.2, abs=1.0)


@pytest.mark.parametrize(
    ("steps", "interval"), [(1, 1e-3), (10**4, 1e-3), (4 * 10**4, 5e-4), (10**6, 1e-4)]
)
def test_the_grid_is_finer_for_more_steps(steps, interval):
    """Its error, about ``steps * interval**2 / 4``, stays below 0.0025."""
    folded = fold([PoissonGaussian(1e-4, 2.0, steps)])
    assert accounting._grid_interval(folded) == pytest.approx(interval, rel=1e-12)


def test_the_grid_spans_one_step_and_all_of_them(monkeypatch):
    """Where the losses are large, they decide how far its points lie apart."""
    folded = fold([PoissonGaussian(1e-9, 0.05, 1), PoissonGaussian(1e-9, 0.5, 1)])
    for everything, larger in ((1.0, 10 / 0.05 + 0.5 / 0.05**2), (1000.0, 1000.0)):
        monkeypatch.setattr(accounting, "renyi_epsilon", lambda *_, value=everything: value)
        assert accounting._grid_interval(folded) == pytest.approx(2 * larger / 200_000)


def test_a_grid_that_would_say_nothing_is_none(monkeypatch):
    folded = fold([PoissonGaussian(0.1, 1.0, 1)])
    for everything, interval in ((50_000.0, 0.5), (50_001.0, None)):
        monkeypatch.setattr(accounting, "renyi_epsilon", lambda *_, value=everything: value)
        assert accounting._grid_interval(folded) == interval


def test_many_distinct_events_share_the_points_of_the_grid(monkeypatch):
    monkeypatch.setattr(accounting, "renyi_epsilon", lambda *_: 100.0)
    events = [PoissonGaussian(1e-9, 1 + i / 1e6, 1) for i in range(2000)]
    for count, points in ((9, 200_000), (39, 50_000), (1999, 1000)):
        interval = accounting._grid_interval(fold(events[:count]))
        assert interval == pytest.approx(2 * 100 / points)
    assert accounting._grid_interval(fold(events)) is None


def asked_of_prv(monkeypatch, support: float, scale: float, steps: int = 1) -> float | None:
    """Return the error that PRV is asked for, or None where it is not asked."""
    asked: list[float] = []
    monkeypatch.setattr(accounting, "renyi_epsilon", lambda *_: support)
    monkeypatch.setattr(
        accounting, "_opacus_interval", lambda events, delta, error: asked.append(error) or (1, 2)
    )
    folded = fold([PoissonGaussian(0.1, 1.0, steps)])
    found = accounting._prv_interval(folded, 1e-5, scale)
    assert found == ((1, 2) if asked else (0.0, None))
    return asked[0] if asked else None


def test_the_cross_check_has_the_mesh_that_memory_allows(monkeypatch):
    """As in Gopi et al. 2021, remark 5.6: the mesh falls with the root of the steps."""
    for steps, support, scale in ((1, 1000.0, 1.0), (9, 10.0, 2000.0), (4, 900.0, 2.0)):
        mesh = 1 / math.sqrt(steps * math.log(12_000 / 1e-5) / 2)
        error = 2 * (max(support, scale) + 3) / (mesh * 400_000)
        found = asked_of_prv(monkeypatch, support, scale, steps)
        assert found == pytest.approx(error, rel=1e-7)
    assert asked_of_prv(monkeypatch, 5.0, 5.0) == 0.01
    assert asked_of_prv(monkeypatch, 5.0, 0.01) is None, "an error as large as the figure"
    assert asked_of_prv(monkeypatch, 5.0, 0.011) == 0.01
    assert asked_of_prv(monkeypatch, 7000.0, 1.1) is None, "0.113, more than a tenth"
    assert asked_of_prv(monkeypatch, 7000.0, 1.2) == pytest.approx(0.1133, abs=1e-3)
    assert asked_of_prv(monkeypatch, 6000.0, 0.5) == pytest.approx(0.0971, abs=1e-3)
    assert asked_of_prv(monkeypatch, math.inf, 1.0) is None


def test_the_cross_check_is_of_all_that_happened(monkeypatch):
    """Unsampled noise counts as one step with all records; two of 2 are one of the root of 2."""
    asked: list[list[tuple[float, float, int]]] = []
    monkeypatch.setattr(
        accounting, "_opacus_interval", lambda events, *_: asked.append(events) or (1, 2)
    )
    sampled = PoissonGaussian(0.1, 3.0, 5)
    accounting._prv_interval(fold([sampled]), 1e-5, 5.0)
    accounting._prv_interval(fold([sampled, Gaussian(2.0), Gaussian(2.0)]), 1e-5, 5.0)
    assert asked[0] == [(0.1, 3.0, 5)]
    first, (rate, noise, steps) = asked[1]
    assert first == (0.1, 3.0, 5)
    assert (rate, steps) == (1.0, 1)
    assert noise == pytest.approx(math.sqrt(2.0))


@pytest.mark.parametrize(
    "interval", [(math.inf, 2.0), (1.0, math.inf), (math.nan, 2.0), (1, math.nan)]
)
def test_a_cross_check_with_one_end_that_is_no_number_is_left_out(monkeypatch, interval):
    folded = fold([PoissonGaussian(0.1, 1.0, 5)])
    monkeypatch.setattr(accounting, "_opacus_interval", lambda *_: (1.0, 2.0))
    assert accounting._prv_interval(folded, 1e-5, 5.0) == (1.0, 2.0)
    smallest = accounting.SMALLEST_NUMERIC_DELTA
    assert accounting._prv_interval(folded, smallest, 9.0) == (1.0, 2.0)
    assert accounting._prv_interval(folded, smallest * 0.99, 9.0) == (0.0, None)
    monkeypatch.setattr(accounting, "_opacus_interval", lambda *_: interval)
    assert accounting._prv_interval(folded, 1e-5, 5.0) == (0.0, None)


def test_a_lower_bound_leaves_room_for_its_own_rounding(monkeypatch):
    monkeypatch.setattr(accounting, "_prv_interval", lambda *_: (5.0, 9.0))
    monkeypatch.setattr(accounting, "one_step_epsilon", lambda *_: 1.0)
    lower = 5.0 * (1 - 1e-5) - 1e-9
    agreed = [PoissonGaussian(0.1, 1.0, 103)]
    for pld, value in ((lower, lower), (6.0, 6.0), (lower * (1 - 1e-12), 9.0)):
        monkeypatch.setattr(accounting, "_bounds", lambda *_, found=pld: (found, 7.0, 8.0))
        accounting._estimate.cache_clear()
        estimate = epsilon(agreed, 1e-5)
        assert estimate.value == value
        assert estimate.lower == lower
    accounting._estimate.cache_clear()


def test_one_sampled_step_has_the_closed_form_of_its_curve():
    """At its epsilon the two curves of a sampled Gaussian step cross delta."""
    for rate, noise, delta in ((0.1, 0.5, 1e-4), (0.3, 1.0, 1e-5), (0.01, 0.3, 1e-6)):
        found = math.exp(one_step_epsilon(rate, noise, delta))
        cut = noise * math.log((found - (1 - rate)) / rate) + 0.5 / noise
        kept = rate * norm.sf(cut - 1 / noise) + (1 - rate) * norm.sf(cut) - found * norm.sf(cut)
        assert kept == pytest.approx(delta, rel=1e-3)
    assert one_step_epsilon(0.1, 0.5, 0.1) == 0.0
    assert one_step_epsilon(0.1, 0.01, 1e-5) == pytest.approx(
        gaussian_epsilon(100.0, 1e-4) + math.log(0.1)
    )


def test_what_is_too_large_or_too_small_for_numbers_is_on_the_safe_side():
    assert gaussian_log_delta(1e-9, 10.0) == -math.inf
    assert gaussian_epsilon(1e200, 1e-5) == math.inf
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert renyi_epsilon(fold([NonPrivate()]), 1e-5) == math.inf
    assert accounting.quick_bound(fold([NonPrivate()]), 1e-5) == math.inf
    empty = accounting.EpsilonEstimate(1.0)
    assert (empty.lower, empty.pld, empty.prv, empty.rdp, empty.closed_form) == (0.0, *[None] * 4)


@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.1, 0.5, 3), (0.1, 0.011, 1), (0.5, 1e4, 11), (0.9, 0.3, 50)]
)
def test_no_librarys_warning_reaches_whoever_asks(rate, noise, steps):
    """They speak of orders and of overflows that the bounds are made for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert epsilon([PoissonGaussian(rate, noise, steps)], 1e-5).value > 0
    alone = fold([PoissonGaussian(rate, noise, steps)])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        accounting._opacus_interval(list(alone.sampled), 1e-5, 1.0)
    assert heard == []
