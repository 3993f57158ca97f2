"""Fingerprints: the same records are known again, and nobody else can tell."""

import pickle
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.errors import ConfigError, DataError
from fedllm.privacy.ledger.fingerprints import FingerprintKey, identify, share_a_tag

KEY = FingerprintKey(b"a secret of the site")


@dataclass(frozen=True)
class Record:
    content: bytes
    unit: str | None = None

    def canonical(self):
        return self.content


def records(*names, unit=None):
    return [Record(name.encode(), unit) for name in names]


def test_order_and_repetition_change_nothing():
    assert identify(records("a", "b", "c"), KEY).id == identify(records("c", "a", "b", "a"), KEY).id


def test_content_unit_and_key_change_the_identity():
    ids = {
        identify(records("a", "b"), KEY).id,
        identify(records("a"), KEY).id,
        identify(records("a", "b", unit="p"), KEY).id,
        identify(records("a", "b", unit="p"), KEY, "person").id,
        identify(records("a", "b"), FingerprintKey(b"another secret of a site")).id,
    }
    assert len(ids) == 5


def test_tags_are_keyed_and_separate_by_kind():
    other = FingerprintKey(b"another secret of a site")
    assert KEY.tag("record", b"x") != other.tag("record", b"x")
    assert KEY.tag("record", b"x") != KEY.tag("person", b"x")
    assert KEY.tag("record", b"x") == FingerprintKey(b"a secret of the site").tag("record", b"x")
    assert KEY.check != other.check


def test_the_key_does_not_leak():
    assert "secret" not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
    identity = identify(records("private words"), KEY)
    assert b"private" not in identity.record_tags
    assert "private" not in repr(identity)


def test_short_secret_empty_data_and_missing_person_are_refused():
    with pytest.raises(ConfigError):
        FingerprintKey(b"short")
    with pytest.raises(DataError):
        identify([], KEY)
    with pytest.raises(DataError, match="names no person"):
        identify([*records("a", unit="p"), *records("b")], KEY, "person")


@given(
    st.sets(st.binary(min_size=16, max_size=16), max_size=20),
    st.sets(st.binary(min_size=16, max_size=16), max_size=20),
    st.booleans(),
)
def test_overlap_is_that_of_sets(left, right, mix):
    if mix and left:
        right = right | {sorted(left)[0]}
    joined = [b"".join(sorted(tags)) for tags in (left, right)]
    assert share_a_tag(*joined) == bool(left & right)


def test_overlap_of_tags_with_zero_bytes():
    a = bytes(16)
    b = bytes(15) + b"\x01"
    c = b"\x01" + bytes(15)
    assert share_a_tag(a + c, c)
    assert not share_a_tag(a, b)
    assert not share_a_tag(b, c)
