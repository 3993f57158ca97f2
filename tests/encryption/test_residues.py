"""Residues on the wire: a round trip for every width, and a check of every single one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.encryption.lattice import packed_length
from fedllm.encryption.residues import (
    from_wire,
    numbers_from_wire,
    numbers_to_wire,
    to_wire,
    wire_length,
)
from fedllm.errors import PeerError

PRIMES = st.lists(st.sampled_from([251, 65521, 1099509805057, 2**60 - 93]), min_size=1, max_size=3)


@given(PRIMES, st.integers(1, 16), st.integers(0, 2**32))
def test_round_trip(primes, degree, seed):
    random = np.random.default_rng(seed)
    rows = [random.integers(0, p, (2, degree), dtype=np.uint64) for p in primes]
    residues = np.stack(rows, axis=1)
    blob = to_wire(residues, primes)
    assert len(blob) == wire_length(primes, degree)
    assert (from_wire(memoryview(blob), primes, degree) == residues).all()


@given(PRIMES, st.integers(1, 8), st.data())
def test_residue_at_its_prime_is_refused_wherever_it_stands(primes, degree, data):
    residues = np.zeros((2, len(primes), degree), dtype=np.uint64)
    prime = data.draw(st.integers(0, len(primes) - 1))
    place = (data.draw(st.integers(0, 1)), prime, data.draw(st.integers(0, degree - 1)))
    residues[place] = primes[prime]
    with pytest.raises(PeerError, match="not below its modulus"):
        from_wire(memoryview(to_wire(residues, primes)), primes, degree)


def test_layout_on_the_wire_does_not_change():
    """Prime after prime, both polynomials, little endian: other versions rely on it."""
    residues = np.array([[[1, 2], [300, 4]], [[5, 6], [7, 8]]], dtype=np.uint64)
    blob = to_wire(residues, [251, 65521])
    assert blob == bytes([1, 2, 5, 6, 44, 1, 4, 0, 7, 0, 8, 0])


@given(st.integers(1, 64), st.integers(1, 40), st.integers(0, 2**32))
def test_round_trip_of_numbers_of_any_width(bits, count, seed):
    numbers = np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint64)
    numbers[0] = 2**bits - 1
    blob = numbers_to_wire(numbers, bits)
    assert len(blob) == packed_length(count, bits) == -(-count * bits // 8)
    assert (numbers_from_wire(memoryview(blob), count, bits) == numbers).all()


@given(st.integers(1, 64), st.integers(1, 20), st.binary(max_size=170))
def test_any_bytes_are_refused_or_are_the_only_form_of_their_numbers(bits, count, blob):
    blob = blob[: packed_length(count, bits)]
    try:
        numbers = numbers_from_wire(memoryview(blob), count, bits)
    except PeerError:
        return
    assert int(numbers.max()) < 2**bits
    assert numbers_to_wire(numbers, bits) == blob


def test_something_behind_the_last_number_is_refused():
    blob = bytearray(numbers_to_wire(np.array([1, 2, 3], dtype=np.uint64), 11))
    assert len(blob) == 5
    blob[-1] |= 1 << 7
    with pytest.raises(PeerError, match="behind"):
        numbers_from_wire(memoryview(blob), 3, 11)
    with pytest.raises(PeerError, match="length"):
        numbers_from_wire(memoryview(blob)[:-1], 3, 11)


def test_layout_of_numbers_on_the_wire_does_not_change():
    """The whole bytes of all, then the bits that are left of all."""
    numbers = np.array([0x2FF, 0x101, 0x3AB], dtype=np.uint64)
    assert numbers_to_wire(numbers, 10) == bytes([0xFF, 0x01, 0xAB, 0b110110])
