from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.errors import PeerError
from fedllm.identity.sealing import SealingKey, seal_for

KEY = SealingKey()


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_only_the_named_key_opens_a_message_and_only_for_its_purpose(message, about):
    sealed = seal_for(KEY.public_bytes(), message, about)
    assert KEY.open(sealed, about) == message
    with pytest.raises(PeerError):
        KEY.open(sealed, about + b"x")
    with pytest.raises(PeerError):
        SealingKey().open(sealed, about)


@given(st.data())
def test_any_change_is_noticed(data):
    sealed = bytearray(seal_for(KEY.public_bytes(), b"seed", b"round 1"))
    place = data.draw(st.integers(0, len(sealed) * 8 - 1))
    # X25519 ignores the highest bit of its 32-byte points (RFC 7748); HPKE binds the bytes.
    sealed[place // 8] ^= 1 << place % 8
    with pytest.raises(PeerError) as caught:
        KEY.open(bytes(sealed), b"round 1")
    assert caught.value.message == "a sealed message does not open with the key of this round"
    assert caught.value.remedy == "it was altered, or sealed for another round"


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(noise):
    with pytest.raises(PeerError):
        KEY.open(noise, b"")


def test_two_seals_of_one_message_differ():
    assert seal_for(KEY.public_bytes(), b"m", b"") != seal_for(KEY.public_bytes(), b"m", b"")


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), bytes(33)])
def test_a_bad_public_key_is_refused(key):
    with pytest.raises(PeerError):
        seal_for(key, b"m", b"")


def test_the_key_is_neither_shown_nor_copied():
    assert KEY.public_bytes().hex() not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
