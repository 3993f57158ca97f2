"""Krippendorff's alpha: by his own example, by hand, and what holds whatever raters say."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from support.rating import rating

from fedllm.rating.agreement import agreement, alpha, coincidences, ordinal, pair_values
from fedllm.rating.rankings import dense

# "Computing Krippendorff's Alpha-Reliability" (2011), part C: 4 observers, 12 units, values 1 to 5,
# missing ones as dots.
PUBLISHED = """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 .
"""


def nominal(totals):
    return 1 - np.eye(len(totals))


def interval(totals):
    places = np.arange(len(totals))
    return (places[:, None] - places[None, :]) ** 2.0


@pytest.fixture
def published():
    rows = [line.split() for line in PUBLISHED.split("\n") if line.strip()]
    units = [[int(v) - 1 for v in column if v != "."] for column in zip(*rows, strict=True)]
    return coincidences(units, 5)


@pytest.mark.parametrize(
    ("metric", "value"), [(nominal, 0.743), (ordinal, 0.815), (interval, 0.849)]
)
def test_the_published_example(metric, value, published):
    assert round(alpha(published, metric), 3) == value


def test_the_published_coincidences(published):
    """As the paper prints them, with a total of 40 pairable values."""
    wanted = [
        [7, 4 / 3, 1 / 3, 1 / 3, 0],
        [4 / 3, 10, 4 / 3, 1 / 3, 0],
        [1 / 3, 4 / 3, 8, 1 / 3, 0],
        [1 / 3, 1 / 3, 1 / 3, 4, 0],
        [0, 0, 0, 0, 3],
    ]
    np.testing.assert_allclose(published, wanted)
    assert published.sum() == pytest.approx(40)


def test_two_prompts_by_hand():
    """One agreement and one opposite: two pairs, each in both directions, eight values."""
    said = [
        rating("a", (1, 2), prompt="p"),
        rating("b", (1, 2), prompt="p"),
        rating("a", (1, 2), prompt="q"),
        rating("b", (2, 1), prompt="q"),
    ]
    found = agreement(said)
    # Half of the pairs opposite; by chance 4 of 7 would be.
    assert found.alpha == pytest.approx(1 - 0.5 / (4 / 7))
    assert [one.disagreement for one in found.disputed] == [1.0, 0.0]
    assert found.disputed[0].group[0].prompt == "q"
    tied = agreement([rating("a", (1, 1)), rating("b", (1, 2))])
    assert tied.disputed[0].disagreement == pytest.approx(1 / 4)


ORDERS = list(permutations((1, 2, 3)))
PROMPTS = st.lists(st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS)), min_size=2)


@settings(max_examples=30)
@given(PROMPTS)
def test_without_ties_it_is_kendalls_tau_but_for_the_correction(prompts):
    said = [
        rating(name, ranks, prompt=str(number))
        for number, both in enumerate(prompts)
        for name, ranks in zip("ab", both, strict=True)
    ]
    taus = [kendalltau(one, other).statistic for one, other in prompts]
    values = 2 * 2 * 3 * len(prompts)
    # Each value of n meets n - 1 others, not n.
    wanted = 1 - (1 - np.mean(taus)) * (values - 1) / values
    assert agreement(said).alpha == pytest.approx(wanted)


RANKINGS = st.lists(st.integers(1, 4), min_size=4, max_size=4).map(dense)
# For each prompt what each of three raters says; None: nothing.
TABLES = st.lists(
    st.tuples(*[st.none() | RANKINGS] * 3).filter(lambda row: sum(map(bool, row)) > 1),
    min_size=1,
    max_size=6,
)


def ratings_of(table, names="abc", turn=(0, 1, 2, 3)):
    """What a table says, with the answers in another order."""
    return [
        rating(
            name,
            tuple(ranks[place] for place in turn),
            prompt=str(number),
            answers=[f"answer {place}" for place in turn],
        )
        for number, row in enumerate(table)
        for name, ranks in zip(names, row, strict=True)
        if ranks
    ]


@settings(max_examples=30)
@given(TABLES, st.permutations("abc"), st.permutations(range(4)), st.randoms())
def test_nothing_hangs_on_who_is_first(table, names, turn, random):
    found = agreement(ratings_of(table))
    other = ratings_of(table[::-1], names, turn)
    random.shuffle(other)
    again = agreement(other)
    if found.alpha is None:
        assert again.alpha is None
        return
    assert again.alpha == pytest.approx(found.alpha)
    assert [one.disagreement for one in again.disputed] == pytest.approx(
        [one.disagreement for one in found.disputed]
    )
    assert found.alpha <= 1
    if found.interval:
        assert found.interval[0] <= found.interval[1] <= 1


@settings(max_examples=30)
@given(st.lists(RANKINGS, min_size=1, max_size=6))
def test_those_who_say_the_same_agree(rankings):
    found = agreement(ratings_of([(ranks,) * 3 for ranks in rankings]))
    tied = all(set(ranks) == {1} for ranks in rankings)
    assert found.alpha == (None if tied else pytest.approx(1))
    assert all(one.disagreement == 0 for one in found.disputed)
    assert all(rater.disagreement == 0 for rater in found.raters)


def test_chance_is_nothing():
    stream = np.random.default_rng(0)
    table = [tuple(tuple(stream.permutation(4) + 1) for _ in "abc") for _ in range(400)]
    found = agreement(ratings_of([[tuple(map(int, r)) for r in row] for row in table]))
    assert abs(found.alpha) < 0.05
    assert found.interval[0] < 0 < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.15
    assert [one.disagreement for one in found.raters] == pytest.approx([0.5] * 3, abs=0.05)
    assert [one.first_best for one in found.raters] == pytest.approx([0.25] * 3, abs=0.08)


def test_what_one_rater_did():
    said = [
        rating("ann", (2, 1, 2), prompt="p", shown=(1, 0, 2)),
        rating("ann", (1, 1, 2), prompt="q"),
        rating("ann", (), prompt="r"),
        rating("bob", (1, 2, 3), prompt="q"),
    ]
    ann, bob = agreement(said).raters
    assert (ann.name, ann.ranked, ann.skipped) == ("ann", 2, 1)
    assert ann.ties == pytest.approx(2 / 6)
    assert ann.first_best == pytest.approx((1 + 0.5) / 2)
    assert ann.by_chance == pytest.approx(1 / 3)
    # One of three pairs: a tie and a preference.
    assert ann.disagreement == bob.disagreement == pytest.approx(1 / 12)


def test_without_shared_prompts_nothing_is_told():
    found = agreement([rating("a", (1, 2), prompt="p"), rating("b", (1, 2), prompt="q")])
    assert (found.alpha, found.interval, found.shared, found.disputed) == (None, None, 0, [])
    assert [rater.disagreement for rater in found.raters] == [None, None]
    # Of other answers to the same prompt neither.
    other = [rating("a", (1, 2)), rating("b", (1, 2), answers=("x", "y"))]
    assert agreement(other).shared == 0


def test_pairs_say_what_is_better():
    assert pair_values((1, 1, 2)) == [1, 0, 0]
    assert pair_values((3, 1, 2)) == [2, 2, 0]
    assert len(pair_values(range(8))) == len(list(combinations(range(8), 2)))
