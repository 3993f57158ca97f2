"""Rankings as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.rating.rankings import RankingError, dense, mid_ranks, parse_ranking, ranking_text

RANKS = st.lists(st.integers(1, 8), min_size=2, max_size=8).map(dense)


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("2 1=3 4", (2, 1, 2, 3)),
        ("21=34", (2, 1, 2, 3)),
        ("2 > 1 = 3, 4", (2, 1, 2, 3)),
        ("1=2=3=4", (1, 1, 1, 1)),
        ("4321", (4, 3, 2, 1)),
        # As a Chinese keyboard writes them.
        ("２\u3000１＝３，４", (2, 1, 2, 3)),
    ],
)
def test_what_people_write(text, ranks):
    assert parse_ranking(text, 4) == ranks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "1 and 2 and 3 and 4 is missing"),
        ("1 2 3", "4 is missing"),
        ("1 2 3 3 4", "3 stands there more than once"),
        ("1 2 3 5", "numbers 1 to 4"),
        ("1 2 3 0", "numbers 1 to 4"),
        ("1 2 3 x", "numbers 1 to 4"),
        ("=1 2 3 4", "between two numbers"),
        ("1 2 3 4=", "between two numbers"),
        ("1 == 2 3 4", "between two numbers"),
    ],
)
def test_what_is_wrong_is_said(text, words):
    with pytest.raises(RankingError, match=words):
        parse_ranking(text, 4)


@given(RANKS)
def test_what_is_written_is_read(ranks):
    assert parse_ranking(ranking_text(ranks), len(ranks)) == ranks


@given(RANKS)
def test_mid_ranks_keep_order_and_sum(ranks):
    found = mid_ranks(ranks)
    assert dense(found) == ranks
    assert sum(found) == len(ranks) * (len(ranks) + 1) / 2


def test_tied_answers_share_their_places():
    assert mid_ranks((1, 2, 2, 3)) == (1, 2.5, 2.5, 4)
