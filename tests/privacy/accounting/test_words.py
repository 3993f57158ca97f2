"""An epsilon in words is never less than the epsilon."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.privacy.accounting.words import epsilon_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.inf, "unlimited"),
        (math.nan, "unlimited"),
        (0.0, "0"),
        (8.0, "8"),
        (7.99910001, "8"),
        (7.9321, "7.933"),
        (1e-9, "1e-09"),
        (0.00123456, "0.001235"),
        (123456.0, "1.235e+05"),
    ],
)
def test_known_words(value, text):
    assert epsilon_text(value) == text


@given(st.floats(min_value=0, max_value=1e300))
def test_no_epsilon_is_rounded_down_or_to_nothing(value):
    shown = float(epsilon_text(value))
    assert value <= shown <= value * 1.0011
