"""Codes come back as they were, take about what entropy allows, and damage is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.compression.clustering import cluster
from fedllm.compression.coding import bits_a_value, decode, encode, entropy_bits
from fedllm.errors import CheckpointError


def drawn(chances, count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.choice(len(chances), count, p=chances).astype(np.uint8)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 15), max_size=300), st.integers(4, 8))
def test_codes_come_back(codes, bits):
    array = np.array(codes, dtype=np.uint8) * (2**bits // 16)
    np.testing.assert_array_equal(decode(encode(array, bits), len(array), bits), array)


def test_a_code_beyond_its_bits_is_refused():
    content = encode(np.array([3, 31, 32], dtype=np.uint8), 6)
    assert decode(content, 3, 6).tolist() == [3, 31, 32]
    with pytest.raises(CheckpointError, match="over 5 bits"):
        decode(content, 3, 5)


@pytest.mark.parametrize(("zeros", "factor"), [(0.5, 1.01), (0.7, 1.02), (0.95, 1.6)])
def test_codes_take_little_more_than_entropy_and_never_less(zeros, factor):
    """More where zero is so frequent that a pair of them is worth less than a bit."""
    codes = drawn([zeros, *[(1 - zeros) / 15] * 15], 200_000)
    taken, least = bits_a_value(len(encode(codes, 4)), len(codes)), entropy_bits(codes) / len(codes)
    assert least < taken < factor * least
    assert zeros < 0.9 or taken < 1


def test_entropy_of_a_fair_coin_is_a_bit_and_of_nothing_none():
    assert entropy_bits(np.array([0, 1] * 50, dtype=np.uint8)) == 100
    assert entropy_bits(np.zeros(9, dtype=np.uint8)) == 0
    assert entropy_bits(np.zeros(0, dtype=np.uint8)) == 0


@given(st.data())
def test_damage_is_told_or_harmless_but_never_another_length(data):
    content = bytearray(encode(drawn([0.5, 0.3, 0.2], 501), 4))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    try:
        assert len(decode(bytes(content), 501, 4)) == 501
    except CheckpointError as error:
        assert "damaged" in error.message


@pytest.mark.parametrize("count", [0, 300, 499, 503, 10_000])
def test_another_number_of_codes_is_refused(count):
    with pytest.raises(CheckpointError, match=r"were expected|cannot hold"):
        decode(encode(drawn([0.5, 0.5], 501), 4), count, 4)


def test_a_bomb_is_not_unpacked():
    with pytest.raises(CheckpointError, match="20 numbers"):
        decode(encode(np.zeros(10_000_000, dtype=np.uint8), 4), 20, 4)


@pytest.mark.parametrize("cut", [0, 1, 50])
def test_what_is_cut_off_is_refused(cut):
    with pytest.raises(CheckpointError):
        decode(encode(drawn([0.2] * 5, 501), 4)[:cut], 501, 4)


def test_pruned_weights_stay_zero_and_others_do_not_become_it():
    generator = np.random.default_rng(2)
    matrix = generator.normal(size=(64, 100)).astype(np.float32)
    matrix[np.abs(matrix) < 0.7] = 0
    matrix[5] = 0
    found = cluster(matrix, 4)
    np.testing.assert_array_equal(found.codes == 0, matrix == 0)
    np.testing.assert_array_equal(found.matrix() == 0, matrix == 0)
    assert len(found.values) == 15


@pytest.mark.parametrize(("bits", "least"), [(4, 0.0095), (5, 0.0025), (6, 0.00065)])
def test_values_of_a_bell_lose_as_little_as_the_best_that_is_known(bits, least):
    """What 16, 32 and 64 levels of Lloyd and Max leave of a Gaussian's variance (Max 1960); one
    level less, for zero, leaves a little more."""
    matrix = np.random.default_rng(3).normal(size=(200, 500)).astype(np.float32)
    found = cluster(matrix, bits)
    lost = np.square(found.matrix() - matrix).mean() / np.square(matrix).mean()
    assert least < lost < 1.25 * least
    assert found.lost(matrix) == pytest.approx(lost, rel=1e-5)


def test_a_few_large_weights_get_values_too():
    """As some layers of real models have: without them most of the squares would be lost."""
    generator = np.random.default_rng(5)
    matrix = generator.normal(size=(200, 500)).astype(np.float32)
    matrix[generator.random(matrix.shape) < 1e-3] *= 40
    assert cluster(matrix, 4).lost(matrix) < 0.06
    assert cluster(matrix, 6).lost(matrix) < 0.005


def test_rows_of_other_sizes_lose_no_more():
    generator = np.random.default_rng(4)
    matrix = generator.normal(size=(200, 500)).astype(np.float32)
    sizes = np.exp(generator.normal(size=(200, 1)) * 3).astype(np.float32)
    lost = np.square(cluster(matrix * sizes, 4).matrix() / sizes - matrix).mean()
    assert lost < 0.0125
