"""Codes come back as they were, take about what entropy allows, and damage is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.compression.clustering import VALUES, cluster
from fedllm.compression.coding import bits_a_value, decode, encode, entropy_bits
from fedllm.errors import CheckpointError


def drawn(chances, count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.choice(len(chances), count, p=chances).astype(np.uint8)


@given(st.lists(st.integers(0, 15), max_size=300))
def test_codes_come_back(codes):
    array = np.array(codes, dtype=np.uint8)
    np.testing.assert_array_equal(decode(encode(array), len(array)), array)


@pytest.mark.parametrize(("zeros", "factor"), [(0.5, 1.01), (0.7, 1.02), (0.95, 1.6)])
def test_codes_take_little_more_than_entropy_and_never_less(zeros, factor):
    """More where zero is so frequent that a pair of them is worth less than a bit."""
    codes = drawn([zeros, *[(1 - zeros) / 15] * 15], 200_000)
    taken, least = bits_a_value(len(encode(codes)), len(codes)), entropy_bits(codes) / len(codes)
    assert least < taken < factor * least
    assert zeros < 0.9 or taken < 1


def test_entropy_of_a_fair_coin_is_a_bit_and_of_nothing_none():
    assert entropy_bits(np.array([0, 1] * 50, dtype=np.uint8)) == 100
    assert entropy_bits(np.zeros(9, dtype=np.uint8)) == 0
    assert entropy_bits(np.zeros(0, dtype=np.uint8)) == 0


@given(st.data())
def test_damage_is_told_or_harmless_but_never_another_length(data):
    content = bytearray(encode(drawn([0.5, 0.3, 0.2], 501)))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    try:
        assert len(decode(bytes(content), 501)) == 501
    except CheckpointError as error:
        assert "damaged" in error.message


@pytest.mark.parametrize("count", [0, 300, 499, 503, 10_000])
def test_another_number_of_codes_is_refused(count):
    with pytest.raises(CheckpointError, match="were expected"):
        decode(encode(drawn([0.5, 0.5], 501)), count)


def test_a_bomb_is_not_unpacked():
    with pytest.raises(CheckpointError, match="20 numbers"):
        decode(encode(np.zeros(10_000_000, dtype=np.uint8)), 20)


@pytest.mark.parametrize("cut", [0, 1, 50])
def test_what_is_cut_off_is_refused(cut):
    with pytest.raises(CheckpointError):
        decode(encode(drawn([0.2] * 5, 501))[:cut], 501)


def test_pruned_weights_stay_zero_and_others_do_not_become_it():
    generator = np.random.default_rng(2)
    matrix = generator.normal(size=(64, 100)).astype(np.float32)
    matrix[np.abs(matrix) < 0.7] = 0
    matrix[5] = 0
    found = cluster(matrix)
    np.testing.assert_array_equal(found.codes == 0, matrix == 0)
    np.testing.assert_array_equal(found.matrix() == 0, matrix == 0)
    assert len(found.values) == VALUES


def test_values_of_a_bell_lose_as_little_as_the_best_that_is_known():
    """Sixteen levels of Lloyd and Max leave .0095 of a Gaussian's variance (Max 1960); 15 a little
    more."""
    matrix = np.random.default_rng(3).normal(size=(200, 500)).astype(np.float32)
    lost = np.square(cluster(matrix).matrix() - matrix).mean() / np.square(matrix).mean()
    assert 0.0095 < lost < 0.0125


def test_rows_of_other_sizes_lose_no_more():
    generator = np.random.default_rng(4)
    matrix = generator.normal(size=(200, 500)).astype(np.float32)
    sizes = np.exp(generator.normal(size=(200, 1)) * 3).astype(np.float32)
    lost = np.square(cluster(matrix * sizes).matrix() / sizes - matrix).mean()
    assert lost < 0.0125
