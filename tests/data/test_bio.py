"""From spans of characters to tags of tokens, and back."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.data.bio import number_of_tags, owners, spans_of_tags, tags_of_tokens
from fedllm.data.spans import Span

LABELS = 3
tags_alone = st.lists(st.integers(0, number_of_tags(LABELS) - 1), max_size=20)


def tags_of(text, spans, offsets, special=None):
    numbers = [int(span.label) for span in spans]
    special = special or [0] * len(offsets)
    return list(tags_of_tokens(owners(text, spans), numbers, offsets, special, -100))


@st.composite
def tiled(draw):
    """A text cut into tokens without a gap, and spans of whole tokens, some side by side."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    borders = [0, *accumulate(sizes)]
    offsets = list(pairwise(borders))
    cuts = sorted(draw(st.sets(st.integers(0, len(sizes)), max_size=6)))
    kept = [(one, two) for one, two in pairwise(cuts) if draw(st.booleans())]
    labels = [draw(st.integers(0, LABELS - 1)) for _ in kept]
    spans = [Span(borders[i], borders[j], str(k)) for (i, j), k in zip(kept, labels, strict=True)]
    return "x" * borders[-1], offsets, spans, [(i, j - 1, k) for (i, j), k in zip(kept, labels)]  # noqa: B905


@given(tiled())
def test_spans_of_whole_tokens_come_back(case):
    text, offsets, spans, wanted = case
    tags = tags_of(text, spans, offsets)
    assert spans_of_tags(tags) == wanted
    # Off by one character a span still has its tokens, and a special one changes no other.
    moved = [(0, 0), *offsets, (0, len(text))]
    assert tags_of(text, spans, moved, [1, *[0] * len(offsets), 1]) == [-100, *tags, -100]


@given(tags_alone)
def test_any_tags_say_something_and_say_it_once(tags):
    found = spans_of_tags(tags)
    covered = [place for first, last, _ in found for place in range(first, last + 1)]
    assert covered == [place for place, tag in enumerate(tags) if tag]
    for first, last, label in found:
        assert {(tag - 1) // 2 for tag in tags[first : last + 1]} == {label}
        assert all(tag % 2 == 0 for tag in tags[first + 1 : last + 1])


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ([0, 1, 2, 2, 0], [(1, 3, 0)]),
        ([1, 1], [(0, 0, 0), (1, 1, 0)]),
        # One that goes on with nothing, or with another label, begins a span.
        ([2, 2, 0, 2], [(0, 1, 0), (3, 3, 0)]),
        ([1, 4, 4], [(0, 0, 0), (1, 2, 1)]),
        ([1, 0, 2], [(0, 0, 0), (2, 2, 0)]),
        ([5, 6], [(0, 1, 2)]),
        ([], []),
    ],
)
def test_tags_are_read_as_conll_reads_them(tags, spans):
    assert spans_of_tags(tags) == spans


def test_a_token_belongs_to_the_span_that_has_most_of_it():
    text = "abcdef"
    two = [Span(0, 2, "0"), Span(2, 6, "1")]
    assert tags_of(text, two, [(0, 6)]) == [3]
    assert tags_of(text, two, [(0, 4)]) == [1], "the first of those that have as many"
    assert tags_of(text, [Span(5, 6, "2")], [(0, 4), (4, 6)]) == [0, 5], "one letter is enough"
    assert tags_of(text, [Span(0, 5, "2")], [(0, 4), (4, 6)]) == [5, 6]
    assert tags_of(text, [Span(4, 6, "0")], [(0, 4), (4, 6)]) == [0, 1], "the end is not included"


def test_spans_side_by_side_stay_two():
    two = [Span(0, 4, "1"), Span(4, 6, "1")]
    assert tags_of("abcdef", two, [(0, 2), (2, 4), (4, 6)]) == [3, 4, 3]


def test_white_space_at_the_edge_of_a_span_takes_no_word_in():
    text = "see  Anna May  now"
    spans = [Span(3, 15, "0")]
    # As a byte-level tokenizer has them: the space before a word is in its token.
    offsets = [(0, 3), (3, 4), (4, 9), (9, 13), (13, 14), (14, 18)]
    assert tags_of(text, spans, offsets) == [0, 0, 1, 2, 0, 0]
    assert tags_of(text, [Span(3, 5, "0")], offsets) == [0] * 6
    # A space of its own in the middle of a span belongs to it.
    apart = [(5, 9), (9, 10), (10, 13)]
    assert tags_of(text, spans, apart) == [1, 2, 2]
    # A token without characters counts as none, and breaks no span.
    assert tags_of(text, spans, [(5, 9), (9, 9), (10, 13)]) == [1, -100, 2]


def test_bytes_of_one_character_are_one_span():
    assert tags_of("🤒a", [Span(0, 1, "1")], [(0, 1)] * 4 + [(1, 2)]) == [3, 4, 4, 4, 0]
