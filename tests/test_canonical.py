"""One form of bytes for what is signed, and one meaning for what is read."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.canonical import (
    MAX_DEPTH,
    canonical_json,
    from_hex,
    labelled_json,
    read_json,
    read_object,
    reading,
    sha256,
    sha256_hex,
    signing_bytes,
)
from fedllm.errors import ConfigError, PeerError

WORDS = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
PARTS = st.lists(st.binary(max_size=12), max_size=5)


@given(VALUES)
def test_values_have_one_form_that_reads_back(value):
    encoded = canonical_json(value)
    assert read_json(encoded) == value
    assert canonical_json(read_json(json.dumps(value, indent=3))) == encoded


def test_the_form_is_that_of_every_ledger_so_far():
    value = {"b": [1, 2.5, None], "a": "\N{GREEK SMALL LETTER ALPHA}\x7f"}
    assert canonical_json(value) == b'{"a":"\\u03b1\\u007f","b":[1,2.5,null]}'
    assert labelled_json("fedllm.roster.v1", {}) == b"fedllm.roster.v1\x1f{}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object(), {(1,): 2}])
def test_what_json_cannot_say_has_no_form(value):
    with pytest.raises(ConfigError, match="no canonical JSON form"):
        canonical_json({"x": value})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b'{"a": 1, "a": 1}',
        b'[{"a": 1, "b": {"c": 1, "c": 2}}]',
        b"NaN",
        b"[-Infinity]",
        b"1e999",
        b"1" * 400,
        b'{"a": [-1' + b"0" * 400 + b"]}",
        b"1" * 5000,
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b'{"a": [{"b": ["c", "\\uDc00"]}]}',
        '["\ud800"]',
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "\ud800",
    ],
)
def test_json_of_several_meanings_or_none_is_refused(content):
    with pytest.raises(ValueError):
        read_json(content)


def test_figures_of_earlier_versions_may_be_no_numbers():
    content = b'{"a": NaN, "b": [Infinity, -Infinity]}'
    assert read_json(content, nan=True) == {"a": None, "b": [None, None]}
    for other in (b"1e999", b'"\\ud800"', b'{"a": 1, "a": NaN}', b"nan"):
        with pytest.raises(ValueError):
            read_json(other, nan=True)


def test_the_largest_numbers_are_floats_too():
    for number in (2**1023 - 1, 1 - 2**1023):
        assert float(read_json(str(number))) == float(number)


def test_depth_that_is_allowed_is_read():
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert canonical_json(read_json(deep)) == deep
    with pytest.raises(ValueError, match="not an object"):
        read_object(deep)


@given(st.binary(max_size=40))
def test_hexadecimal_digits_read_back(content):
    assert from_hex(content.hex()) == content
    assert from_hex(content.hex(), len(content)) == content


@pytest.mark.parametrize("text", ["0", "0g", "00 11", " 00", "00\n", None, 12, b"00", ["00"]])
def test_other_digits_are_refused(text):
    with pytest.raises(ValueError, match="hexadecimal"):
        from_hex(text)


def test_a_key_of_another_size_is_refused():
    with pytest.raises(ValueError, match="hexadecimal"):
        from_hex("00" * 31, 32)


@given(PARTS, PARTS)
def test_different_statements_never_have_the_same_bytes(one, other):
    same = signing_bytes("a", *one) == signing_bytes("a", *other)
    assert same == (one == other)
    assert signing_bytes("a", *one) != signing_bytes("b", *one)


def test_the_signing_encoding_is_as_documented():
    assert signing_bytes("t", b"xy", 7) == (
        b"\x03" + bytes(7) + b"\x01" + bytes(7) + b"t" + b"\x02" + bytes(7) + b"xy"
        b"\x01" + bytes(7) + b"7"
    )  # fmt: skip
    # Parts that a separator would confuse.
    assert signing_bytes("t", "a\x1fb") != signing_bytes("t", "a", "b")
    assert signing_bytes("t", "ab", "") != signing_bytes("t", "a", "b")


def test_digests_of_text_are_those_of_its_bytes():
    expected = hashlib.sha256("\N{GREEK SMALL LETTER ALPHA}".encode())
    assert sha256("\N{GREEK SMALL LETTER ALPHA}") == expected.digest()
    assert sha256_hex("\N{GREEK SMALL LETTER ALPHA}".encode()) == expected.hexdigest()


@pytest.mark.parametrize("error", [KeyError(1), TypeError(), OverflowError(), RecursionError()])
def test_whatever_goes_wrong_while_reading_is_the_callers_error(error):
    damaged = PeerError("it is damaged")
    with pytest.raises(PeerError, match="it is damaged"), reading(damaged):
        raise error
    with pytest.raises(ConfigError, match="more"), reading(damaged):
        raise ConfigError("more is known")
    with pytest.raises(KeyboardInterrupt), reading(damaged):
        raise KeyboardInterrupt
