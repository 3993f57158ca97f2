"""Stochastic rounding: exact to a step, unbiased, and refusing what is no number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedllm.encryption.quantise import Quantiser
from fedllm.errors import ConfigError, TrainingError
from fedllm.randomness import RandomStream

FLOATS = st.floats(-4, 4, width=32)


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=FLOATS), st.integers(4, 24))
def test_round_trip_is_within_one_step_and_clipped(vector, bits):
    quantiser = Quantiser([(len(vector), 2.0)], bits)
    levels = quantiser.quantise(vector, RandomStream.seeded(0))
    assert levels.max() <= quantiser.top_level
    back = quantiser.dequantise_sum(levels, 1)
    assert (np.abs(back - np.clip(vector, -2, 2)) < quantiser.step * (1 + 1e-9)).all()


def test_rounding_is_right_on_average():
    count = 400_000
    quantiser = Quantiser([(count, 1.0)], 4)
    value = np.float32(0.31)
    levels = quantiser.quantise(np.full(count, value), RandomStream.seeded(3))
    back = quantiser.dequantise_sum(levels, 1)
    # Five standard errors of a two-point distribution one step apart.
    assert abs(back.mean() - value) < 5 * quantiser.step[0] / 2 / np.sqrt(count)
    assert len(np.unique(levels)) == 2


@pytest.mark.parametrize("bits", [4, 8, 16, 24])
def test_zero_and_the_bounds_have_levels_of_their_own(bits):
    quantiser = Quantiser(np.array([0.7, 0.7, 0.7], np.float32), bits)
    vector = np.array([0.0, 0.7, -0.7], np.float32)
    levels = quantiser.quantise(vector, RandomStream.secure())
    assert levels.tolist() == [quantiser.top_level // 2, quantiser.top_level, 0]
    assert quantiser.dequantise_sum(levels, 1)[0] == 0.0


def test_segments_have_their_own_bounds():
    quantiser = Quantiser([(2, 0.5), (1, 4.0)], 8)
    vector = np.array([9, -9, 9], np.float32)
    levels = quantiser.quantise(vector, RandomStream.secure())
    assert quantiser.dequantise_sum(levels, 1).tolist() == pytest.approx([0.5, -0.5, 4.0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_released(value):
    quantiser = Quantiser([(3, 1.0)], 8)
    with pytest.raises(TrainingError, match="NaN or infinite"):
        quantiser.quantise(np.array([0, value, 0], np.float32), RandomStream.secure())


def test_other_length_is_refused():
    with pytest.raises(TrainingError, match="shape"):
        Quantiser([(3, 1.0)], 8).quantise(np.zeros(4, np.float32), RandomStream.secure())


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, np.inf])
def test_bound_must_be_positive_and_finite(bound):
    with pytest.raises(ConfigError, match="bound"):
        Quantiser([(3, bound)], 8)
