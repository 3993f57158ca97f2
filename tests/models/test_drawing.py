"""Tokens are drawn as often as the model says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from fedllm.models import drawing
from fedllm.models.drawing import DrawnTokens, Sampling

LOGITS = torch.tensor([1.0, 3.0, -2.0, 2.5, 0.0, 2.9, -torch.inf])


def wanted(temperature, top_p):
    """The shares as transformers has them."""
    scores = TemperatureLogitsWarper(temperature)(None, LOGITS[None].clone())
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("many", [2, 256])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_shares_are_those_of_transformers(temperature, top_p, many, monkeypatch):
    monkeypatch.setattr(drawing, "_MANY", many)
    one = Sampling(temperature, top_p, 1).drawing([1])
    count = 3000
    found = np.bincount([one.next(LOGITS) for _ in range(count)], minlength=len(LOGITS)) / count
    expected = wanted(temperature, top_p)
    assert np.abs(found - expected).max() < 4 * 0.5 / np.sqrt(count)
    assert not found[expected == 0].any()


def test_temperature_zero_is_the_likeliest_and_takes_no_chance():
    one = Sampling(0.0, 0.1, 1).drawing([1])
    assert {one.next(LOGITS) for _ in range(5)} == {1}


def test_the_ends_of_the_line_are_tokens():
    for number, token in ((0.0, 0), (1 - 2.0**-53, 3)):
        assert drawing._drawn(torch.tensor([0.25, 0.25, 0.0, 0.5]), number) == token
    assert drawing._drawn(torch.tensor([0.0, 0.5, 0.5]), 0.0) == 1
    assert drawing._drawn(torch.tensor([0.5, 0.5, 0.0]), 1 - 2.0**-53) == 1


def test_each_row_keeps_the_token_that_was_drawn_for_it():
    ways = [Sampling(), Sampling(5.0, 1.0, 1), Sampling(5.0, 1.0, 2)]
    expected = [way.drawing([4]).next(LOGITS) for way in ways]
    scores = DrawnTokens([way.drawing([4]) for way in ways])(None, LOGITS.repeat(3, 1))
    assert scores.argmax(-1).tolist() == expected
    assert (scores.isfinite().sum(-1) == 1).all()


def test_numbers_hang_on_seed_prompt_and_repeat():
    def numbers(seed, prompt, repeat=0):
        return tuple(Sampling(1.0, 1.0, seed).drawing(prompt, repeat).stream.uniform(3))

    assert numbers(1, [4, 5]) == numbers(1, [4, 5])
    others = {numbers(1, [4, 5]), numbers(2, [4, 5]), numbers(1, [5, 4]), numbers(1, [4, 5], 1)}
    assert len(others) == 4
