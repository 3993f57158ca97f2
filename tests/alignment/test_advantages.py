"""Advantages, against what they are by hand, in float64."""

from __future__ import annotations

import pytest
import torch

from fedllm.alignment.advantages import generalised, group_relative, token_rewards, whitened


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, *wanted: float) -> bool:
    return torch.allclose(found, doubles(*wanted), rtol=0, atol=1e-12)


def test_each_token_pays_for_its_distance_and_the_last_one_brings_the_reward():
    own, reference = doubles(-1.0, -2.0, -0.5), doubles(-1.5, -1.0, -0.5)
    # 0.1 times (0.5, -1, 0) is paid; 2 comes with the end.
    assert close(token_rewards(2.0, own, reference, 0.1), -0.05, 0.1, 2.0)


def test_a_single_token_has_the_whole_reward():
    assert close(token_rewards(-3.0, doubles(-1.0), doubles(-1.0), 0.1), -3.0)


def test_advantages_are_sums_of_surprises():
    rewards, values = doubles(0.0, 1.0, 2.0), doubles(0.5, 0.25, 1.0)
    # Surprises: 0 + 0.25 - 0.5, 1 + 1 - 0.25, 2 + 0 - 1.
    last, middle = 1.0, 1.75 + 0.9 * 1.0
    assert close(generalised(rewards, values, 0.9), -0.25 + 0.9 * middle, middle, last)


def test_at_one_they_are_what_is_still_to_come_and_at_zero_one_step():
    rewards, values = doubles(0.0, 1.0, 2.0), doubles(0.5, 0.25, 1.0)
    assert close(generalised(rewards, values, 1.0), 3.0 - 0.5, 3.0 - 0.25, 2.0 - 1.0)
    assert close(generalised(rewards, values, 0.0), -0.25, 1.75, 1.0)


def test_answers_do_not_reach_into_each_other():
    alone = generalised(doubles(0.0, 1.0), doubles(0.5, 0.5), 0.95)
    both = [alone, generalised(doubles(5.0, 9.0), doubles(7.0, 7.0), 0.95)]
    assert torch.equal(both[0], alone)
    whole = torch.cat(both)
    found = torch.cat(whitened(both))
    wanted = (whole - whole.mean()) / whole.std(correction=0)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert abs(float(found.mean())) < 1e-12


def test_answers_stand_among_those_to_their_own_prompt():
    rewards = doubles(1.0, 3.0, 10.0, 30.0, 20.0, 20.0)
    found = group_relative(rewards, 2)
    one = 1 / (1 + 1e-4)
    ten = 10 / (10 + 1e-4)
    assert close(found, -one, one, -ten, ten, 0.0, 0.0)


def test_the_better_answer_has_the_larger_advantage():
    assert group_relative(doubles(0.0, 1.0, 2.0), 3).argmax() == 2


def test_equal_rewards_that_differ_by_rounding_teach_hardly_anything():
    found = group_relative(doubles(1.0, 1.0 + 1e-9), 2)
    assert float(found.abs().max()) < 1e-4


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_late_reward_reaches_all_tokens_before_it(place):
    found = generalised(doubles(0.0, 0.0, 1.0), doubles(0.0, 0.0, 0.0), 0.95)
    assert float(found[place]) == pytest.approx(0.95 ** (2 - place), abs=1e-12)
