"""Lower bounds on epsilon: valid, as tight as their derivation, and zero where nothing is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, linprog
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from fedllm.audit.attacks import one_run
from fedllm.audit.attacks.one_run import (
    Guesses,
    binomial_tail,
    canaries_needed,
    gaussian_bound,
    guess,
    largest_bound,
    lower_bound,
    plain_bound,
)
from fedllm.privacy.accounting.gaussian import gaussian_epsilon, gaussian_log_delta

DELTA = 1e-5


def largest_tail(guesses, mu, tangents=400):
    """The largest P[C >= right] that the inequalities allow, as a linear programme."""
    m, r, v = guesses.canaries, guesses.made, guesses.right
    j = np.arange(r + 1)
    # 1 - f(x) is concave, so it is the smallest of its tangents.
    z = np.linspace(-6, 5, tangents)
    x0, value = ndtr(z), ndtr(z + mu)
    slope = np.exp(-0.5 * (z + mu) ** 2 + 0.5 * z**2)
    rows, limits = [], []
    for t in range(1, r + 1):
        right, wrong = np.where(j >= t, j / m, 0), np.where(j >= t - 1, (r - j) / m, 0)
        rows += [right - s * wrong for s in slope]
        limits += list(value - slope * x0)
    found = linprog(
        -(j >= v).astype(float),
        A_ub=np.array(rows),
        b_ub=limits,
        A_eq=np.ones((1, r + 1)),
        b_eq=[1.0],
        bounds=(0, 1),
        method="highs",
    )
    return -found.fun


@pytest.mark.parametrize(("m", "r", "v"), [(8, 8, 7), (12, 6, 6), (15, 15, 11), (20, 5, 4)])
@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
def test_recursion_finds_what_a_linear_programme_finds(m, r, v, mu):
    guesses = Guesses(m, r, v)
    largest = largest_tail(guesses, mu)

    def impossible(level):
        return one_run._needs_too_much(guesses, level, lambda a: float(ndtr(ndtri(a) - mu)))

    # Tangents lie above the curve, so the programme's answer is a little too large.
    if largest < 0.97:
        assert impossible(largest * 1.02 + 1e-4)
    assert not impossible(largest * 0.97)


def test_all_right_is_as_strong_as_it_can_be():
    everything = Guesses(1000, 1000, 1000)
    # Without delta: e^eps / (1 + e^eps) to the power of 1000 is one twentieth.
    share = 0.05 ** (1 / 1000)
    assert plain_bound(everything, 1e-12, 0.05) == pytest.approx(
        math.log(share / (1 - share)), 1e-3
    )
    assert gaussian_bound(everything, DELTA, 0.05) > 9


def test_chance_gives_no_bound():
    for guesses in (Guesses(1000, 1000, 500), Guesses(1000, 200, 103), Guesses(50, 50, 0)):
        assert plain_bound(guesses, DELTA, 0.05) == 0.0
        assert gaussian_bound(guesses, DELTA, 0.05) == 0.0


def test_tail_is_binomial_without_delta_and_grows_with_it():
    guesses = Guesses(100, 60, 45)
    exact = binom.sf(44, 60, 1 / (1 + math.exp(-0.7)))
    assert binomial_tail(guesses, 0.7, 0.0) == pytest.approx(exact)
    assert exact < binomial_tail(guesses, 0.7, 1e-4) < binomial_tail(guesses, 0.7, 1e-2) <= 1


def test_more_right_guesses_never_lower_a_bound():
    bounds = [
        (plain_bound(g, DELTA, 0.05), gaussian_bound(g, DELTA, 0.05))
        for g in (Guesses(200, 100, right) for right in range(50, 101, 5))
    ]
    assert bounds == sorted(bounds)
    assert all(a <= b for a, b in zip(*zip(*bounds, strict=True), strict=True) if b > 0)


def test_guesses_take_the_extreme_scores():
    scores = np.array([0.1, 5.0, -3.0, 2.0, 0.0, 9.0])
    coins = np.array([True, True, False, False, True, True])
    assert guess(scores, coins, 1, 2) == Guesses(6, 3, 3)
    assert guess(scores, coins, 0, 3) == Guesses(6, 3, 2)
    assert guess(scores, coins, 3, 3) == Guesses(6, 6, 3)


@pytest.mark.parametrize("mu", [0.3, 1.0, 1.7])
def test_bound_stays_under_the_truth_and_finds_a_good_part_of_it(mu):
    truth, stream = gaussian_epsilon(mu, DELTA), np.random.default_rng(1)
    found = []
    for _ in range(12):
        coins = stream.random(1000) < 0.5
        found.append(lower_bound(coins * mu + stream.normal(size=1000), coins, DELTA).epsilon)
    # 95% confidence each; these twelve are fixed by the seed.
    assert max(found) <= truth
    assert np.median(found) > 0.15 * truth


@pytest.mark.parametrize("drawn", [1.0, 0.6, 0.1])
def test_who_sees_every_draw_reaches_the_largest_bound_and_passes_it_by_luck_only(drawn):
    stream = np.random.default_rng(3)
    coins = stream.permutation(np.arange(600) % 2 == 0)
    seen = np.zeros(600, dtype=bool)
    # As many are drawn as must be expected; how often differs, as in a run of many steps.
    seen[stream.permutation(np.flatnonzero(coins))[: round(300 * drawn)]] = True
    scores = np.where(seen, 3 + stream.integers(0, 20, 600), 0)
    found = lower_bound(scores, coins, DELTA, 0.95, drawn).epsilon
    largest = largest_bound(600, drawn, DELTA, 0.95)
    assert found == pytest.approx(largest, abs=0.3)
    if drawn == 1.0:
        assert found == largest


@pytest.mark.parametrize("drawn", [1.0, 0.5])
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_as_many_canaries_as_needed_can_refute_and_half_as_many_cannot(epsilon, drawn):
    needed = canaries_needed(epsilon, drawn, DELTA, 0.95)
    assert largest_bound(needed, drawn, DELTA, 0.95) > epsilon
    assert largest_bound(needed // 2, drawn, DELTA, 0.95) < epsilon


def test_a_claim_beyond_all_canaries_needs_more_than_there_are(monkeypatch):
    monkeypatch.setattr(one_run, "_MOST", 100)
    assert canaries_needed(30.0, 1.0, DELTA, 0.95) is None


def test_bound_passes_a_claim_that_the_noise_does_not_keep():
    stream = np.random.default_rng(2)
    coins = stream.random(1000) < 0.5
    assert lower_bound(coins * 1.0, coins, DELTA).epsilon > 8


@pytest.mark.parametrize(
    ("rate", "noise", "steps"),
    [(1.0, 1.0, 1), (0.5, 0.6, 1), (0.9, 0.5, 3), (0.25, 0.7, 16), (0.064, 0.8, 100), (0.01, 1, 1)],
)
def test_a_gaussian_of_the_claimed_epsilon_leaks_no_less_than_the_mechanism_claimed(
    rate, noise, steps
):
    # So who rules out that Gaussian has ruled out the claim, sampled steps as they are.
    from dp_accounting.pld import privacy_loss_distribution as pld

    claimed = pld.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=1e-3
    ).self_compose(steps)
    epsilon = claimed.get_epsilon_for_delta(1e-5)
    mu = brentq(lambda mu: gaussian_epsilon(mu, 1e-5) - epsilon, 1e-6, 20)
    for smaller in np.linspace(0, epsilon, 25):
        leaked = claimed.get_delta_for_epsilon(smaller)
        assert leaked <= 1.001 * np.exp(gaussian_log_delta(mu, smaller))
