"""Envelopes: what was signed is what is opened, byte for byte."""

from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.encryption.envelope import Expectation, open_envelope, sign_envelope
from fedllm.encryption.plan import make_plan
from fedllm.errors import PeerError, RefusedError

PLAN = make_plan("none", 8, 4, 50, False)
EXPECTED = Expectation("run", 3, "site-00", "update", "ab", PLAN)
KEY = Ed25519PrivateKey.generate()
PAYLOAD = bytes(range(PLAN.update_bytes % 256)) * 2
PAYLOAD = (PAYLOAD * PLAN.update_bytes)[: PLAN.update_bytes]


def verify(site, message, signature):
    try:
        KEY.public_key().verify(signature, message)
    except InvalidSignature:
        raise RefusedError(f"the signature of {site} is wrong") from None


def accept(site, message, signature):
    return None


BLOB = sign_envelope(PAYLOAD, EXPECTED, KEY.sign)


def test_round_trip():
    assert open_envelope(BLOB, EXPECTED, verify) == PAYLOAD


@pytest.mark.parametrize(
    "other",
    [
        {"run": "other"},
        {"attempt": 4},
        {"site": "site-01"},
        {"purpose": "evaluation"},
        {"key": "cd"},
        {"plan": make_plan("none", 8, 5, 50, False)},
    ],
)
def test_envelope_of_anything_else_is_refused_even_when_signed(other):
    with pytest.raises(PeerError, match="not for this round"):
        open_envelope(
            sign_envelope(PAYLOAD, replace(EXPECTED, **other), KEY.sign), EXPECTED, verify
        )


def test_signature_of_somebody_else_is_refused():
    forged = sign_envelope(PAYLOAD, EXPECTED, Ed25519PrivateKey.generate().sign)
    with pytest.raises(RefusedError, match="signature"):
        open_envelope(forged, EXPECTED, verify)


def test_signature_is_checked_before_the_payload_is_hashed(monkeypatch):
    def refuse(site, message, signature):
        raise RefusedError("signature")

    monkeypatch.setattr("fedllm.encryption.envelope.sha256_hex", None)
    with pytest.raises(RefusedError, match="signature"):
        open_envelope(BLOB, EXPECTED, refuse)


@given(st.integers(0, len(BLOB) - 1), st.integers(0, 7))
@settings(max_examples=300)
def test_every_flipped_bit_is_noticed(place, bit):
    damaged = bytearray(BLOB)
    damaged[place] ^= 1 << bit
    with pytest.raises((PeerError, RefusedError)):
        open_envelope(bytes(damaged), EXPECTED, verify)


@given(st.integers(0, len(BLOB) - 1))
@settings(max_examples=100)
def test_every_truncation_is_noticed(length):
    with pytest.raises(PeerError):
        open_envelope(BLOB[:length], EXPECTED, accept)


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(blob):
    with pytest.raises(PeerError):
        open_envelope(blob, EXPECTED, accept)


def test_lengths_that_lie_are_refused_before_anything_is_copied():
    for place in range(10, 22):
        damaged = bytearray(BLOB)
        damaged[place] = 0xFF
        with pytest.raises(PeerError):
            open_envelope(bytes(damaged), EXPECTED, accept)
    with pytest.raises(PeerError):
        open_envelope(BLOB + b"\0", EXPECTED, accept)
