"""Fingerprints of ledgers of before: which data sets shared records."""

from hypothesis import given
from hypothesis import strategies as st

from fedllm.privacy.ledger.fingerprints import share_a_tag


@given(
    st.sets(st.binary(min_size=16, max_size=16), max_size=20),
    st.sets(st.binary(min_size=16, max_size=16), max_size=20),
    st.booleans(),
)
def test_overlap_is_that_of_sets(left, right, mix):
    if mix and left:
        right = right | {sorted(left)[0]}
    joined = [b"".join(sorted(tags)) for tags in (left, right)]
    assert share_a_tag(*joined) is bool(left & right)


def test_overlap_of_tags_with_zero_bytes():
    a = bytes(16)
    b = bytes(15) + b"\x01"
    c = b"\x01" + bytes(15)
    assert share_a_tag(a + c, c)
    assert not share_a_tag(a, b)
    assert not share_a_tag(b, c)
