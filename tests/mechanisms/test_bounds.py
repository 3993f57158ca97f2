"""How large an update gets, against steps that are really taken, and room for noise."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from fedllm.errors import ConfigError
from fedllm.mechanisms import LocalSettings
from fedllm.mechanisms.bounds import Room, largest_sum, update_bounds
from fedllm.privacy.discrete import SMALLEST_SHARE, TAIL_DEVIATIONS
from fedllm.randomness import RandomStream

SEGMENTS = [SimpleNamespace(group="lora"), SimpleNamespace(group="head")]


def settings(**changes) -> LocalSettings:
    values = {
        "steps": 3,
        "sampling_rate": 0.5,
        "expected_batch_size": 100.0,
        "microbatch_size": 8,
        "optimizer": "adam",
        "learning_rate": 0.5,
        "head_learning_rate": 0.25,
        "clipping_norm": 2.0,
        "noise_multiplier": None,
    }
    return LocalSettings(**values | changes)


def last_step(gradients) -> float:
    """Adam (Kingma and Ba 2015, algorithm 1), without its epsilon: the last of the steps."""
    mean = square = 0.0
    for gradient in gradients:
        mean = 0.9 * mean + (1 - 0.9) * gradient
        square = 0.999 * square + (1 - 0.999) * gradient**2
    number = len(gradients)
    return abs(mean / (1 - 0.9**number)) / math.sqrt(square / (1 - 0.999**number))


@pytest.mark.parametrize("number", [1, 2, 3, 10, 60])
def test_a_step_of_adam_reaches_its_bound_and_none_goes_beyond(number):
    """The worst gradients grow as (0.9 / 0.999) to the power of their age."""
    before = update_bounds(settings(steps=number - 1), SEGMENTS)[0] if number > 1 else 0.0
    (lora, head) = update_bounds(settings(steps=number), SEGMENTS)
    assert head == lora / 2
    step = (lora - before) / 0.5
    worst = [(0.9 / 0.999) ** (number - 1 - index) for index in range(number)]
    assert last_step(worst) == pytest.approx(step, rel=1e-9)
    generator = np.random.default_rng(number)
    for _ in range(50):
        assert last_step(generator.normal(size=number) ** 3) <= step * (1 + 1e-9)


def test_the_largest_step_of_adam_is_the_first_ones_together():
    assert update_bounds(settings(steps=1), SEGMENTS) == pytest.approx((0.5, 0.25))


def test_plain_steps_add_up_to_clipping_norms():
    plain = settings(optimizer="sgd")
    assert update_bounds(plain, SEGMENTS) == pytest.approx((3 * 2 * 0.5, 3 * 2 * 0.25))


def test_private_steps_have_room_for_batch_and_noise():
    private = settings(optimizer="sgd", steps=4, noise_multiplier=1.5)
    assert largest_sum(100.0) == 160.0
    # 2 * 160 / 100 for each step, and six times 1.5 * 2 / 100 for the noise of four together.
    bound = 4 * 3.2 + 6 * 2 * 0.03
    assert update_bounds(private, SEGMENTS) == pytest.approx((0.5 * bound, 0.25 * bound))


def test_levels_span_the_sum_and_its_noise():
    room = Room(signal=3.0, deviation=0.5)
    assert room.reach == 3.0 + TAIL_DEVIATIONS * 0.5
    # Levels of b bits span from -reach to reach: 2**b - 2 steps.
    assert room.least_deviation(4) == pytest.approx(SMALLEST_SHARE * 2 * room.reach / 14)


@pytest.mark.parametrize("enough", [9, 24, 25])
def test_bits_that_are_named_are_enough_and_fewer_are_not(enough):
    room = Room(signal=1.0, deviation=1e-3)
    deviation = room.least_deviation(enough) * 1.01
    room.require_fine(enough, deviation)
    with pytest.raises(ConfigError, match="is too coarse") as refused:
        room.require_fine(8, deviation, "look, then ")
    said = f"look, then set encryption.bits = {enough}"
    assert (refused.value.remedy == said) == (enough <= 24)
    if enough > 24:
        assert refused.value.remedy.startswith("ask for less epsilon")
    with pytest.raises(ConfigError):
        room.require_fine(enough - 1, deviation)
    room.require_fine(8, room.least_deviation(8))


@pytest.mark.parametrize("bits", [8, 12, 16, 20])
@pytest.mark.parametrize("times", [0.9995, 1.0, 1.0005, 1.0007])
def test_bits_that_are_named_are_enough_also_at_the_edge(bits, times):
    room = Room(signal=1.0, deviation=1e-3)
    deviation = room.least_deviation(bits) / 8 / times
    with pytest.raises(ConfigError) as refused:
        room.require_fine(bits, deviation)
    named = int(refused.value.remedy.removeprefix("set encryption.bits = "))
    room.require_fine(named, deviation)
    assert named <= bits + 4


def test_values_are_cut_off_before_they_have_noise():
    room = Room(signal=2.0, deviation=1.0)
    stream = RandomStream.seeded(1)
    drawn = room.noised(np.array([9.0, -9.0, 0.5]), 1.0, stream) * room.reach
    noise = room.noised(np.zeros(3), 1.0, RandomStream.seeded(1)) * room.reach
    assert drawn - noise == pytest.approx([2.0, -2.0, 0.5])
    assert np.abs(noise).max() > 0


def test_more_noise_than_there_is_room_for_is_refused():
    room = Room(signal=2.0, deviation=1.0)
    for deviation in (1.0, 1.0 + 0.9e-9):
        room.noised(np.zeros(2), deviation, RandomStream.seeded(1))
    with pytest.raises(ConfigError, match="does not fit"):
        room.noised(np.zeros(2), 1.0 + 1.5e-9, RandomStream.seeded(1))
