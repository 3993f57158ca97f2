"""What charges cost that were chosen one after the other by what was seen before.

Every other epsilon of the project is for charges that were fixed beforehand: a run that goes as
it was planned. Whoever decides on the next charge by what the last ones released can gain a
little, even if no path exceeds the epsilon computed for it (Rogers, Roth, Ullman, Vadhan 2016).
The bound here holds for that, too, at whatever moment it is read.

*Why.* Let L be the privacy loss of all that was released, and R(a) the sum of the Rényi
divergences of order a of what was charged. Whatever chose the charges, exp((a - 1) (L - R(a)))
has an expected value of at most 1 (Feldman and Zrnic 2021), and so has any mixture of such terms
with weights that were fixed beforehand. With K(a) = a**a / (a - 1)**(a - 1), exp((a - 1) x) is at
least K(a) (1 - exp(-x)) for all x > 0. So with the epsilon at which the weighted sum of
K(a) exp((a - 1) (epsilon - R(a))) is 1 / delta, the expected value of 1 - exp(epsilon - L), where
that is positive, is at most delta: the definition of (epsilon, delta), read at the end of
whichever path was taken.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedllm.errors import ConfigError
from fedllm.privacy.accounting.events import Folded
from fedllm.privacy.accounting.renyi import ORDERS, renyi_divergences

# Orders, less one, as parts of what would be best for a Gaussian near the ceiling, and by how
# much less each next one weighs. Sampled steps want smaller orders the rarer they sample.
_LARGEST, _RATIO, _COUNT, _DECLINE = 1.0, 0.7, 12, 0.3
# Part of delta that the failures of discrete noise may use up. It is kept for them beforehand,
# since how many there are is the coordinator's to choose as well.
_KEPT = 1e-3
_DIGITS = 1e-9


def adaptive_epsilon(folded: Folded, delta: float, near: float) -> float:
    """Return an upper bound on epsilon, whatever the charges were chosen by.

    Near the ceiling about a fifth above what the same charges cost if they were fixed beforehand,
    more where few units are sampled in few steps, and not sharp far below. 0 if nothing happened.

    Parameters
    ----------
    folded : Folded
        What was charged; infinite epsilon if any of it was not private, or if the failures of
        discrete noise use up more of ``delta`` than a thousandth.
    delta : float
        In (0, 1).
    near : float
        The epsilon, above 0, near which the bound is sharpest. It has to be fixed before
        anything is charged: the account's ceiling. What was stated by the site itself counts as
        fixed beforehand.

    Raises
    ------
    ConfigError
        If ``delta`` or ``near`` is out of range.
    """
    if not 0 < delta < 1 or not 0 < near < math.inf:
        raise ConfigError(
            f"delta = {delta!r} or epsilon = {near!r} is out of range",
            "delta is in (0, 1), and epsilon positive and finite",
        )
    kept = _KEPT * delta
    left = (delta - kept - folded.stated_delta) * math.exp(-folded.divergence)
    if folded == Folded():
        return 0.0
    if folded.non_private or folded.failure > kept or left <= 0:
        return math.inf
    chosen, weights = _mixture(delta, near)
    divergences = renyi_divergences(folded)[chosen]
    known = np.isfinite(divergences)
    if not known.any():
        return math.inf
    orders = ORDERS[chosen][known]
    logs = np.log(weights[known]) + orders * np.log(orders) - (orders - 1) * np.log(orders - 1)
    found = _root(logs, orders - 1, divergences[known], -math.log(left))
    return found + 2 * folded.divergence + folded.stated


def adaptive_limit(ceiling: float) -> float:
    """Return the largest `adaptive_epsilon` under a ceiling: twice its epsilon, and 2.

    Ordinary runs that use the ceiling up stay far below. What comes near samples few units in few
    steps under little noise, and rests on delta.
    """
    return 2 * ceiling + 2


def _mixture(delta: float, near: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return places in `ORDERS` and their weights, which add up to 1."""
    best = 2 * math.log(1 / delta) / near
    weights = np.zeros(len(ORDERS))
    for number in range(_COUNT):
        wanted = math.log(best * _LARGEST * _RATIO**number)
        place = int(np.argmin(np.abs(np.log(ORDERS - 1) - wanted)))
        weights[place] += math.exp(-_DECLINE * number)
    chosen = np.flatnonzero(weights)
    return chosen, weights[chosen] / weights.sum()


def _root(
    logs: NDArray[np.float64],
    slopes: NDArray[np.float64],
    divergences: NDArray[np.float64],
    aim: float,
) -> float:
    """Return the epsilon, rounded up, at which the logarithm of the weighted sum is ``aim``.

    The sum rises with epsilon, and no term of it is larger than the whole.
    """
    high = max(0.0, float(np.min(divergences + (aim - logs) / slopes)))
    low = 0.0
    while high - low > _DIGITS * (1 + high):
        middle = (low + high) / 2
        if float(np.logaddexp.reduce(logs + slopes * (middle - divergences))) >= aim:
            high = middle
        else:
            low = middle
    return high * (1 + _DIGITS)
