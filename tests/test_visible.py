import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.visible import is_hidden, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("St. Anne 第一医院 é", "St. Anne 第一医院 é"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("two\nlines\r\tand\x00", r"two\x0alines\x0d\x09and\x00"),
        ("\u2028", r"\u2028"),
        ("\U000e0041tag", r"\U000e0041tag"),
        ("\ud800", r"\ud800"),
        ("wide\u3000space", "wide\u3000space"),
    ],
)
def test_what_is_hidden_becomes_an_escape(text, shown):
    assert visible(text) == shown


def test_lines_are_kept_where_there_may_be_several():
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@given(st.text(st.characters()))
def test_nothing_hidden_is_left(text):
    assert not any(is_hidden(c) for c in visible(text))
    assert visible(visible(text)) == visible(text)
    if all(unicodedata.category(c)[0] != "C" and c.isprintable() for c in text):
        assert visible(text) == text
