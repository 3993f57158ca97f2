"""The preference file that a run reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.rating import rating

from fedllm.rating.export import preference_rows
from fedllm.rating.rankings import dense


def rows(*said, consensus=False):
    return list(preference_rows(said, consensus))


def test_a_row_for_each_rater():
    said = [
        rating("ann", (2, 1), context="c", id="a"),
        rating("bob", (1, 2), context="c", id="a", person="x"),
        rating("ann", (), prompt="q"),
        rating("ann", (1, 1), prompt="r"),
    ]
    shared = {"id": "a", "prompt": "p", "context": "c", "answers": ["answer 0", "answer 1"]}
    assert rows(*said) == [
        {**shared, "ranks": [2, 1], "rater": "ann"},
        {**shared, "ranks": [1, 2], "rater": "bob", "person": "x"},
    ]


def test_raters_share_a_ranking():
    """Answers by the mean of mid-ranks; as good as each other where these are equal."""
    said = [
        rating("ann", (1, 2, 3)),
        # The same answers, called otherwise.
        rating("bob", (2, 1, 2), answers=("answer 2", "answer 1", "answer 0")),
        rating("cyd", (1, 2, 1)),
    ]
    # 1 + 2.5 + 1.5, 2 + 1 + 3, 3 + 2.5 + 1.5
    assert rows(*said, consensus=True) == [
        {
            "prompt": "p",
            "answers": ["answer 0", "answer 1", "answer 2"],
            "ranks": [1, 2, 3],
            "raters": 3,
        }
    ]
    assert rows(rating("ann", (1, 2)), rating("bob", (2, 1)), consensus=True) == []


def test_other_answers_to_a_prompt_are_rows_of_their_own():
    said = [rating("ann", (1, 2)), rating("bob", (1, 2), answers=("x", "y"))]
    assert [row["raters"] for row in rows(*said, consensus=True)] == [1, 1]


RANKINGS = st.lists(st.integers(1, 4), min_size=4, max_size=4).map(dense)


@given(RANKINGS, st.integers(1, 4))
def test_who_agree_share_what_each_said(ranks, count):
    said = [rating(f"r{number}", ranks) for number in range(count)]
    wanted = [list(ranks)] if len(set(ranks)) > 1 else []
    assert [row["ranks"] for row in rows(*said, consensus=True)] == wanted


def test_who_ties_many_gives_the_others_no_less_weight():
    """Places are averaged; the numbers as they are written would tie the first and the last."""
    said = [rating("ann", (1, 1, 1, 2)), rating("bob", (2, 3, 4, 1))]
    assert [row["ranks"] for row in rows(*said, consensus=True)] == [[1, 2, 3, 2]]
