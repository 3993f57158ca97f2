"""Discrete noise: exact draws, sums of shares, and the cost that is charged for them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.errors import ConfigError
from fedllm.limits import MAX_SITES
from fedllm.privacy import discrete
from fedllm.privacy.accounting.accountants import epsilon, upper_bound
from fedllm.privacy.accounting.events import (
    MAX_SHARES,
    Gaussian,
    PoissonDiscreteGaussian,
    PoissonGaussian,
    fold,
    from_json,
    to_json,
)
from fedllm.privacy.accounting.gaussian import gaussian_log_delta
from fedllm.privacy.discrete import (
    DIVERGENCE_PER_VALUE,
    SMOOTHING_VARIANCE,
    discrete_gaussian,
    round_at_random,
    sensitivity,
    share_deviation,
    worth,
)
from fedllm.randomness import RandomStream


def pmf(deviation: float, reach: int) -> np.ndarray:
    """Return the discrete Gaussian's probabilities from -reach to reach."""
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-(x**2) / (2 * deviation**2))
    return weights / weights.sum()


def event(noise=1.5, *, shares=3, clipping=1000.0, length=500, rate=0.3, steps=10, share=None):
    share = share or share_deviation(noise, shares, clipping, length)
    return PoissonDiscreteGaussian(rate, noise, steps, shares, share, clipping, length)


@pytest.mark.parametrize(
    ("clipping", "length", "known"),
    [
        (3.0, 4, 5.0),  # every value rounded the wrong way: 3 + sqrt(4)
        # sqrt(c^2 + P / 4 + sqrt(2 ln 1e18) (c + sqrt(P) / 2)), worked out by hand
        (1000.0, 10**6, 1124.12492),
        (100.0, 50_000, 156.29580),
    ],
)
def test_known_answers_for_the_sensitivity(clipping, length, known):
    assert sensitivity(clipping, length) == pytest.approx(known, abs=1e-4)


@pytest.mark.parametrize("deviation", [1, 2, 5, 40])
def test_draws_follow_the_exact_probabilities(deviation):
    count, reach = 200_000, 12 * deviation
    drawn = discrete_gaussian(RandomStream.seeded(1, deviation), count, deviation)
    exact = pmf(deviation, reach)
    found = np.bincount(drawn + reach, minlength=len(exact)) / count
    often = exact * count > 20
    z = (found - exact)[often] / np.sqrt(exact[often] / count)
    assert np.abs(z).max() < 5
    assert abs(np.mean(z**2) - 1) < 6 / math.sqrt(often.sum() / 2)
    moments = [(exact * np.arange(-reach, reach + 1) ** k).sum() for k in (2, 4)]
    assert (drawn**2).mean() == pytest.approx(moments[0], rel=6 * math.sqrt(2 / count))
    assert (drawn.astype(float) ** 4).mean() == pytest.approx(moments[1], rel=0.05)


def test_draws_of_training_size_have_the_right_spread_and_odd_numbers():
    drawn = discrete_gaussian(RandomStream.seeded(2), 100_000, 123_457)
    assert drawn.std() == pytest.approx(123_457, rel=6 / math.sqrt(2 * len(drawn)))
    assert abs(drawn.mean()) < 6 * 123_457 / math.sqrt(len(drawn))
    assert (drawn % 2).mean() == pytest.approx(0.5, abs=0.01)


def test_a_deviation_out_of_range_is_refused():
    for deviation in (0, -1, (1 << 26) + 1):
        with pytest.raises(ValueError, match="deviation"):
            discrete_gaussian(RandomStream.seeded(0), 1, deviation)


@pytest.mark.parametrize(("deviation", "shares"), [(1, 2), (1, 5), (2, 3)])
def test_a_sum_of_shares_is_as_close_to_one_discrete_gaussian_as_is_claimed(deviation, shares):
    reach = 14 * deviation
    one = total = pmf(deviation, reach)
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    exact = pmf(deviation * math.sqrt(shares), (len(total) - 1) // 2)
    likely = exact > 1e-12
    distance = np.abs(np.log(total[likely] / exact[likely])).max()
    assert distance <= 10 * shares * math.exp(-(math.pi**2) * deviation**2) + 1e-9
    assert distance > 0, "not closed under sums; the charge is what makes up for it"


@pytest.mark.parametrize("smoothing", [0.3, 0.5, 0.8])
def test_a_discrete_gaussian_is_something_done_to_a_continuous_one(smoothing):
    """N(0, v - t^2) and a discrete Gaussian of variance t^2 around it, integrated numerically."""
    variance = 9.0
    y = np.arange(-40, 40, 1e-3)
    density = np.exp(-(y**2) / (2 * (variance - smoothing)))
    density /= density.sum()
    x = np.arange(-15, 16)
    around = np.exp(-((np.arange(-60, 61)[:, None] - y) ** 2) / (2 * smoothing)).sum(0)
    found = np.array(
        [(density * np.exp(-((k - y) ** 2) / (2 * smoothing)) / around).sum() for k in x]
    )
    distance = np.abs(np.log(found / pmf(3.0, 60)[45:76])).max()
    assert distance <= 5 * math.exp(-2 * math.pi**2 * smoothing) + 1e-6


def test_the_constant_covers_both_distances():
    shares, smallest = MAX_SHARES, discrete.SMALLEST_SHARE
    of_sums = 10 * shares * math.exp(-(math.pi**2) * smallest**2)
    of_smoothing = 5 * math.exp(-2 * math.pi**2 * SMOOTHING_VARIANCE)
    assert of_sums + of_smoothing <= DIVERGENCE_PER_VALUE


@pytest.mark.parametrize("sites", [*range(2, 40), 1024, 4096, MAX_SHARES])
def test_rounding_each_share_takes_nothing_from_the_sum_however_many_they_are(sites):
    """All Fourier coefficients together, but those of the sum; see docs/privacy-accounting.md.

    Of the vectors that differ by the same whole number everywhere, one has a sum of at most half
    the number of sites. At most ``(2 * sites)**w`` have w as the sum of their magnitudes, and
    across the sum their squared length is at least ``w * (1 - w / sites)`` up to half the number
    of sites, and ``w / 2`` beyond.
    """
    rate = 2 * math.pi**2 * discrete.SMALLEST_SHARE**2
    all_of_them = sum(
        math.exp(units * math.log(2 * sites) - rate * max(units * (1 - units / sites), units / 2))
        for units in range(1, 4 * sites + 1)
    )
    assert all_of_them < 1e-65


@pytest.mark.parametrize("multiplier", [0.7, 1.0, 3.0])
def test_one_value_costs_no_more_than_is_charged(multiplier):
    """The true hockey-stick divergence of integers that differ by the sensitivity."""
    clipping = 9.0
    moved = math.ceil(sensitivity(clipping, 1))
    share = share_deviation(multiplier, 1, moved, 1)
    noise = pmf(share, 40 * share)
    shifted = np.roll(noise, moved)
    charged = PoissonDiscreteGaussian(1.0, multiplier, 1, 1, share, float(moved), 1)
    for delta in (1e-3, 1e-5):
        value = epsilon([charged], delta).value
        true = np.maximum(noise - math.exp(value) * shifted, 0).sum()
        assert true <= delta
        # And the charge is no more than a few percent above what it must be.
        assert math.log(delta) - gaussian_log_delta(1 / multiplier, value) < 0.02


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_sampling_costs_no_more_than_is_charged(rate):
    moved, multiplier = 12, 1.0
    share = share_deviation(multiplier, 1, moved, 1)
    without = pmf(share, 40 * share)
    with_unit = (1 - rate) * without + rate * np.roll(without, moved)
    charged = PoissonDiscreteGaussian(rate, multiplier, 1, 1, share, float(moved), 1)
    for delta in (1e-3, 1e-5):
        value = epsilon([charged], delta).value
        for p, q in ((without, with_unit), (with_unit, without)):
            assert np.maximum(p - math.exp(value) * q, 0).sum() <= delta


def test_the_noise_that_is_charged_is_hardly_more_than_continuous_noise():
    fine = epsilon([event(steps=100, clipping=20_000.0, length=30_000)], 1e-5).value
    continuous = epsilon([PoissonGaussian(0.3, 1.5, 100)], 1e-5).value
    assert continuous <= fine <= continuous * (1 + 1e-6)
    share = share_deviation(1.5, 3, 20_000.0, 30_000)
    assert share * math.sqrt(3) / 20_000 / 1.5 < 1.001, "and costs a thousandth more noise"


@settings(max_examples=200)
@given(
    clipping=st.floats(0.5, 1e4),
    length=st.integers(1, 3000),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["spread", "one", "halves"]),
)
def test_rounding_moves_neighbours_no_further_than_is_said(clipping, length, seed, kind):
    stream = RandomStream.seeded(seed)
    base = 50 * stream.normal(length)
    if kind == "spread":
        direction = stream.normal(length)
    elif kind == "one":
        direction = np.eye(1, length)[0]
    else:
        direction = np.full(length, 0.5)
    change = direction * clipping / np.linalg.norm(direction)
    key = stream.bytes(32)
    one = round_at_random(base, RandomStream(key))
    other = round_at_random(base + change, RandomStream(key))
    assert np.linalg.norm(one - other) <= sensitivity(clipping, length)


def test_rounding_is_right_on_average():
    values = np.array([0.25, -0.25, 3.0, -7.9])
    stream = RandomStream.seeded(3)
    drawn = np.array([round_at_random(values, stream) for _ in range(20_000)])
    np.testing.assert_allclose(drawn.mean(0), values, atol=0.02)
    assert np.array_equal(np.unique(drawn[:, 3]), [-8, -7])
    assert np.array_equal(np.unique(drawn[:, 2]), [3])


def test_an_event_that_claims_more_than_its_shares_give_cannot_be_made():
    right = event()
    with pytest.raises(ConfigError, match="not worth a noise multiplier"):
        event(share=right.share_deviation - 1)
    with pytest.raises(ConfigError, match="shares"):
        event(shares=0, share=right.share_deviation)
    with pytest.raises(ConfigError, match="not worth"):
        PoissonDiscreteGaussian(0.3, 1.5, 10, 1, right.share_deviation, 1000.0, 500)
    text = json.dumps(to_json(right))
    assert from_json(json.loads(text)) == right
    forged = {**to_json(right), "noise_multiplier": 2.0}
    with pytest.raises(ConfigError, match="not worth"):
        from_json(forged)


def test_a_reader_that_does_not_know_the_event_refuses_it(monkeypatch):
    from fedllm.privacy.accounting import events

    old = {k: v for k, v in events._TYPES.items() if k != "poisson_discrete_gaussian"}
    value = to_json(event())
    monkeypatch.setattr(events, "_TYPES", old)
    with pytest.raises(ConfigError, match="unknown privacy event"):
        from_json(value)


def test_shares_no_larger_than_what_smooths_them_are_worth_nothing():
    assert worth(1, 1, 10.0, 4) == 0.0
    assert worth(2, 1, 10.0, 4) == 0.0
    assert worth(3, 1, 10.0, 4) > 0.0


def test_shares_are_worth_what_they_were_made_for():
    for noise in (0.5, 2.55, 40.0):
        for shares in (1, 2, 10):
            share = share_deviation(noise, shares, 5000.0, 30_000)
            assert noise <= worth(share, shares, 5000.0, 30_000) * (1 + 2e-9) <= noise * 1.01


def test_discrete_and_continuous_steps_of_one_run_compose():
    mixed = [event(steps=10), PoissonGaussian(0.3, 1.5, 10), Gaussian(5.0)]
    folded = fold(mixed)
    assert folded.sampled == ((0.3, 1.5, 20),)
    assert folded.failure >= 10 * discrete.ROUNDING_FAILURE
    assert fold(mixed[1:]).within(folded)
    assert not fold([event(steps=20), Gaussian(5.0)]).within(folded)
    assert upper_bound(folded, 1e-5) == pytest.approx(epsilon(mixed, 1e-5).value)


def test_every_share_of_the_largest_cohort_may_leave_its_range():
    """Shares of sites that are in the sum and not counted on are cut off as well."""
    tails = 2 * math.exp(-(discrete.TAIL_DEVIATIONS**2) / 2) * (1 + math.exp(50))
    steps, length = 3, 1 << 28
    failure = fold([PoissonDiscreteGaussian(0.3, 1.0, steps, 2, 10**6, 9.0, length)]).failure
    assert failure - steps * discrete.ROUNDING_FAILURE >= steps * length * MAX_SITES * tails


def test_a_delta_below_what_rounding_may_fail_with_is_no_privacy():
    assert epsilon([event(steps=10**6)], 1e-13).value == math.inf
    assert math.isfinite(epsilon([event(steps=10**6)], 1e-11).value)


@pytest.mark.parametrize("draw", [discrete_gaussian, discrete._discrete_laplace])
def test_as_many_values_are_drawn_as_were_asked_for_however_few_are_kept(draw, monkeypatch):
    """Of a first part hardly any is kept, of a second one some, of a third one all."""
    kept = iter([1, 40, 10**6])
    whole = discrete._discrete_laplace

    def some(stream, numerators, denominator):
        return np.arange(len(numerators)) < next(kept)

    monkeypatch.setattr(discrete, "_discrete_laplace", lambda s, n, d: np.zeros(n, dtype=np.int64))
    monkeypatch.setattr(discrete, "_bernoulli_exp", some)
    draw = whole if draw is whole else draw
    assert len(draw(RandomStream.seeded(1), 100, 5)) == 100
    assert next(kept, None) is None, "and no more often than needed"
