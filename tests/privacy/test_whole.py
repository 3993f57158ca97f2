"""A site's update clipped and noised as one contribution."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fedllm.privacy.whole import private_update
from fedllm.randomness import RandomStream


def silent(update, norm):
    return private_update(update, norm, 0.0, 1.0, RandomStream.seeded(0))


def test_two_data_sets_move_the_update_by_twice_the_norm_at_most():
    stream = RandomStream.seeded(1)
    one, other = 30 * stream.normal(50), -40 * stream.normal(50)
    assert np.linalg.norm(silent(one, 0.5)) == pytest.approx(0.5, rel=1e-6)
    assert np.linalg.norm(silent(one, 0.5) - silent(-one, 0.5)) == pytest.approx(1.0, rel=1e-6)
    assert np.linalg.norm(silent(one, 0.5) - silent(other, 0.5)) <= 1.0 + 1e-6


def test_an_update_within_the_norm_is_left_as_it_is():
    update = np.array([0.3, -0.4], dtype=np.float32)
    np.testing.assert_array_equal(silent(update, 0.51), update)


def test_noise_is_counted_in_units_of_twice_the_norm():
    noised = private_update(np.zeros(40_000), 0.25, 3.0, 0.5, RandomStream.seeded(2))
    assert noised.std() == pytest.approx(3.0 * 2 * 0.25 * 0.5, rel=6 / np.sqrt(2 * 40_000))


def test_no_rounding_lifts_an_update_over_its_norm():
    update = np.full(2**20, 0.7e-8)
    update[0] = 1.0
    values = private_update(update, 1e-3, 0.0, 1.0, RandomStream.seeded(1))
    square = Fraction(values[0]) ** 2 + Fraction(values[-1]) ** 2 * (len(values) - 1)
    assert square <= Fraction(1e-3) ** 2
    assert float(square) == pytest.approx(1e-6, rel=1e-8)
