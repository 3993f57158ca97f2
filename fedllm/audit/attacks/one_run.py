"""Lower bounds on epsilon from one training run with many canaries.

Each canary is in the training data or not, by a fair coin of its own. An attacker looks at
what training gave, guesses some of the coins, and abstains from the others. Whoever guesses
more of them than differential privacy allows has shown a lower bound on epsilon.

Two bounds on the number of right guesses:

* Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", theorem 5.2:
  holds for (epsilon, delta)-DP and assumes nothing else.
* The argument of Mahloujifar, Melis, Chaudhuri 2024, "Auditing f-differential privacy in one
  run", derived below for the curve of the Gaussian mechanism. It is tighter because it
  uses the whole trade-off curve, and says which Gaussian mechanism is the least private
  one that can be ruled out.

Derivation of the second. Let C be the number of right among r guesses of m canaries and
p_j = P[C = j]. Fix all coins but the i-th. The event "i is guessed as b, and at least t - 1 of
the other guesses are right" is an event of the output; under coin b it is "right, and
C >= t", under the other coin "wrong, and C >= t - 1". A mechanism with trade-off curve f
therefore has P[i right, C >= t] <= 1 - f(P[i wrong, C >= t - 1]). Averaging over i and the other
coins, with 1 - f concave:

    sum_{j >= t} (j / m) p_j  <=  1 - f( sum_{j >= t - 1} ((r - j) / m) p_j )    for every t.

If P[C >= v] = alpha, the cheapest way to satisfy all of this puts alpha on j = v and on every
lower j just what the inequality above it asks for: mass at a lower j adds less to the left
side and more to the right side of all inequalities that it appears in. When more than mass
1 is needed, P[C >= v] < alpha, and seeing v right guesses rejects f at level alpha.

A claim of epsilon at delta for Poisson-sampled Gaussians is refuted with the Gaussian of the same
epsilon at the same delta: sampling puts more of the loss into the tail, so below that epsilon
this Gaussian has the larger delta everywhere, and ruling it out rules out the claim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from fedllm.privacy.accounting.gaussian import gaussian_epsilon

_LARGEST_EPSILON = 50.0
_LARGEST_MU = 20.0
# Ways to guess that `lower_bound` tries with each view of the canaries.
WAYS = 8
_FEWEST, _MOST = 16, 200_000
_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Guesses:
    """How well coins were guessed.

    Attributes
    ----------
    canaries, made, right : int
        All coins, guesses made, and right ones.
    """

    canaries: int
    made: int
    right: int


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on epsilon.

    Attributes
    ----------
    epsilon : float
        Holds for the curve of a Gaussian mechanism; see this module's text.
    epsilon_without_assumption : float
        Holds for any (epsilon, delta)-DP mechanism.
    guesses : Guesses
        The guesses behind ``epsilon``.
    confidence : float
        Probability that a bound is right, over coins and noise.
    """

    epsilon: float
    epsilon_without_assumption: float
    guesses: Guesses
    confidence: float


def guess(scores: np.ndarray, coins: np.ndarray, low: int, high: int) -> Guesses:
    """Guess the coins of the most extreme scores.

    Parameters
    ----------
    scores : ndarray
        (m,), larger where the canary seems to have been in.
    coins : ndarray
        (m,) bool, whether it was.
    low, high : int
        How many of the smallest are guessed "out", and of the largest "in".
    """
    order = np.argsort(scores, kind="stable")
    out, inside = order[:low], order[len(order) - high :]
    right = int(np.count_nonzero(~coins[out])) + int(np.count_nonzero(coins[inside]))
    return Guesses(len(scores), low + high, right)


def lower_bound(
    scores: np.ndarray,
    coins: np.ndarray,
    delta: float,
    confidence: float = 0.95,
    drawn: float = 1.0,
) -> Bound:
    """Return the best lower bound over a few fixed ways to guess.

    All canaries are guessed, or a half, a fifth and a twentieth of them, from both ends or
    from the upper end alone, or so many from the upper end as are in and were drawn into a
    batch but for bad luck (a canary that no batch drew cannot be told from one that was out).
    Each way gets an equal part of the error (Bonferroni), so that choosing the best afterwards
    is fair.

    Parameters
    ----------
    scores : ndarray
        (m,) as in `guess`, or (V, m): V views of the same canaries, each guessed by.
    coins : ndarray
        As in `guess`.
    delta : float
        Of the claim.
    confidence : float
        Of the whole bound.
    drawn : float
        Probability that a batch ever drew a canary that was in.
    """
    views = np.atleast_2d(scores)
    error = (1 - confidence) / (WAYS * len(views))
    tried = [
        guess(view, coins, low, high)
        for view in views
        for low, high in (_divided(view, drawn), *_fixed_ways(len(view), drawn))
    ]
    best, guesses = max(
        ((gaussian_bound(one, delta, error), one) for one in tried), key=lambda pair: pair[0]
    )
    plain = max(plain_bound(one, delta, error) for one in tried)
    return Bound(max(best, plain), plain, guesses, confidence)


def _fixed_ways(canaries: int, drawn: float) -> list[tuple[int, int]]:
    """Return how many are guessed "out" and "in", where the scores do not decide it."""
    ways = [(0, _surely_drawn(canaries, drawn))]
    for part in (2, 5, 20):
        made = max(2, canaries // part)
        ways += [(made // 2, made - made // 2), (0, made)]
    return ways


def _surely_drawn(canaries: int, drawn: float) -> int:
    """Return how many canaries are in and drawn at least, but for bad luck (1 in 30,000)."""
    share = drawn / 2
    least = canaries * share - 4 * sqrt(canaries * share * (1 - share))
    return max(1, int(least))


def best_guesses(canaries: int, drawn: float) -> list[Guesses]:
    """Return what each way to guess gives an attacker who sees every draw, about.

    Parameters
    ----------
    canaries : int
        How many coins.
    drawn : float
        Probability that a batch ever drew a canary that was in.
    """
    seen = round(canaries * drawn / 2)
    rest = canaries - seen
    out = min(1.0, canaries / 2 / rest) if rest else 0.0
    found = []
    for low, high in ((rest, seen), *_fixed_ways(canaries, drawn)):
        known = min(high, seen)
        right = known + (high - known) * (1 - out) + low * out
        found.append(Guesses(canaries, low + high, round(right)))
    return found


def largest_bound(
    canaries: int, drawn: float, delta: float, confidence: float, views: int = 1
) -> float:
    """Return about the most that `lower_bound` can show, whatever the mechanism gives away.

    Coins tell no more than their number does: with every guess right, a smaller epsilon would
    still give the same now and then.

    Parameters
    ----------
    canaries, drawn, delta, confidence
        As in `lower_bound`.
    views : int
        How many views it goes by.
    """
    error = (1 - confidence) / (WAYS * views)
    return max(
        max(gaussian_bound(g, delta, error), plain_bound(g, delta, error))
        for g in best_guesses(canaries, drawn)
    )


def canaries_needed(
    epsilon: float, drawn: float, delta: float, confidence: float, views: int = 1
) -> int | None:
    """Return how many canaries can refute an epsilon; none if 200,000 cannot.

    Parameters
    ----------
    epsilon : float
        The claim. A tenth more is asked for, so that a few wrong guesses do not decide.
    drawn, delta, confidence, views
        As in `largest_bound`.
    """
    error = (1 - confidence) / (WAYS * views)
    mu = _mu_of(_MARGIN * epsilon, delta)

    def enough(canaries: int) -> bool:
        return any(_rules_out(g, mu, error) for g in best_guesses(canaries, drawn))

    low, high = 1, _FEWEST
    while not enough(high):
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _mu_of(epsilon: float, delta: float) -> float:
    """Return the Gaussian mechanism, mean over deviation, that has this epsilon at delta."""
    low, high = 0.0, 1.0
    while gaussian_epsilon(high, delta) < epsilon:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, delta) < epsilon else (low, middle)
    return high


def _divided(scores: np.ndarray, drawn: float) -> tuple[int, int]:
    """Divide all scores at a wide gap where the number of those drawn must lie.

    At the lowest of those at least half as wide as the widest: where several steps draw a
    canary, so do gaps between those drawn once, twice and more often.
    """
    ordered, canaries = np.sort(scores), len(scores)
    least = _surely_drawn(canaries, drawn)
    most = min(canaries - 1, round(canaries * drawn) - least + 1)
    counts = np.arange(least, max(least, most) + 1)
    # `counts` of the largest scores are above each of these gaps.
    gaps = ordered[canaries - counts] - ordered[canaries - counts - 1]
    high = int(counts[gaps >= gaps.max() / 2][-1])
    return canaries - high, high


def gaussian_bound(guesses: Guesses, delta: float, error: float) -> float:
    """Return epsilon at ``delta`` of the largest Gaussian mechanism that is ruled out."""

    def rejected(mu: float) -> bool:
        return _rules_out(guesses, mu, error)

    mu = _largest(rejected, _LARGEST_MU)
    return gaussian_epsilon(mu, delta) if mu > 0 else 0.0


def _rules_out(guesses: Guesses, mu: float, error: float) -> bool:
    return _needs_too_much(guesses, error, lambda a: float(ndtr(ndtri(a) - mu)))


def plain_bound(guesses: Guesses, delta: float, error: float) -> float:
    """Return the largest epsilon that is ruled out at ``delta``, whatever the mechanism."""

    def rejected(epsilon: float) -> bool:
        return binomial_tail(guesses, epsilon, delta) <= error

    return _largest(rejected, _LARGEST_EPSILON)


def binomial_tail(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Bound the probability of so many right guesses (Steinke et al. 2023, theorem 5.2)."""
    right, made = guesses.right, guesses.made
    if right == 0:
        return 1.0
    probability = 1 / (1 + exp(-epsilon))
    tail = float(binom.sf(right - 1, made, probability))
    # Mass delta can turn i wrong guesses into right ones, for the i that helps most.
    below = np.cumsum(binom.pmf(right - np.arange(1, right + 1), made, probability))
    gain = float((below / np.arange(1, right + 1)).max())
    return min(1.0, tail + 2 * guesses.canaries * delta * gain)


def _needs_too_much(guesses: Guesses, level: float, inverse: Callable[[float], float]) -> bool:
    """Whether P[C >= right] = ``level`` would need more than all probability.

    ``inverse`` is the inverse of 1 - f.
    """
    m, made, right = guesses.canaries, guesses.made, guesses.right
    total = level
    correct, wrong = right * level / m, (made - right) * level / m
    for t in range(right, 0, -1):
        if correct >= 1:
            return True
        lacking = inverse(correct) - wrong
        mass = max(0.0, lacking * m / (made - t + 1))
        total += mass
        if total > 1:
            return True
        correct += mass * (t - 1) / m
        wrong += mass * (made - t + 1) / m
    return False


def _largest(rejected: Callable[[float], bool], top: float) -> float:
    """Return the largest value that is rejected, 0 if none is; rejection is monotone."""
    if not rejected(1e-6):
        return 0.0
    if rejected(top):
        return top
    low, high = 1e-6, top
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low
