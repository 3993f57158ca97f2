"""Secrets and errors of lattice masks are the discrete Gaussian that their proof asks for."""

import math

import numpy as np
from scipy import stats

from fedllm.encryption.lattice import DEVIATION
from fedllm.encryption.short_gaussian import LARGEST, _thresholds, short_gaussian
from fedllm.randomness import RandomStream


class Scripted:
    """Gives the words that it was given, first the upper halves and then the lower ones."""

    def __init__(self, upper, lower):
        self.words = [np.array(upper, dtype=np.uint64), *(np.array([w], np.uint64) for w in lower)]

    def uint64(self, count):
        word = self.words.pop(0)
        assert len(word) == count
        return word


def test_the_table_is_the_distribution_function_to_its_last_bits():
    """Against the exponential's series in whole numbers, 2**300 for one."""

    def weight(x):
        term = total = 1 << 300
        for k in range(1, 500):
            term = term * x * x // (2 * DEVIATION**2 * k)
            total += term
        return (1 << 600) // total

    half = [weight(x) for x in range(LARGEST + 1)]
    whole, below = half[0] + 2 * sum(half[1:]), 0
    table, upper = _thresholds()
    assert len(table) == len(upper) == 2 * LARGEST
    for x, entry in zip(range(-LARGEST, LARGEST), table, strict=True):
        below += half[abs(x)]
        assert abs(entry - (below << 128) // whole) <= 1
    # What was left out on both sides is less than a step of the table.
    assert 2 * weight(LARGEST + 1) << 128 < whole


def test_draws_follow_the_distribution():
    draws = short_gaussian(RandomStream.seeded(1), 400_000)
    values = np.arange(-24, 25)
    expected = np.exp(-(values**2) / (2 * DEVIATION**2))
    expected *= 400_000 / np.exp(-(np.arange(-99, 100) ** 2) / (2 * DEVIATION**2)).sum()
    counts = np.array([(draws == value).sum() for value in values])
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-6
    assert abs(draws.mean()) < 6 * DEVIATION / math.sqrt(400_000)
    assert abs(draws.std() / DEVIATION - 1) < 0.01


def test_the_last_64_bits_decide_where_the_first_are_those_of_a_threshold():
    """In the middle, and in the tails, where many thresholds have the same first 64 bits."""
    table, upper = _thresholds()
    tails = [p for p, entry in enumerate(table) if entry in range(2**20, 2**64)]
    tails += [p for p, entry in enumerate(table) if 2**128 - entry in range(2**20, 2**64)]
    assert len(tails) > 10
    for place in (60, 90, LARGEST, 2 * LARGEST - 60, *tails):
        low = table[place] & (2**64 - 1)
        for more, value in ((low - 1, place), (low, place + 1), (low + 1, place + 1)):
            drawn = short_gaussian(Scripted([upper[place]], [more]), 1)
            assert drawn.tolist() == [value - LARGEST]


def test_draws_of_secure_streams_differ():
    first, second = (short_gaussian(RandomStream.secure(), 1000) for _ in range(2))
    assert (first != second).sum() > 800
