"""What is rounded in training is what integers will be, and gradients go on through it."""

from __future__ import annotations

import itertools

import pytest
import torch
from exporting.conftest import finished, tiny
from torch import nn

from fedllm.compression.distilling import Distillation, distil, logits_of, trainable
from fedllm.compression.integers import INTEGERS, to_integers
from fedllm.compression.rounding_aware import as_if_rounded
from fedllm.compression.whole import open_whole

__all__ = ["finished", "tiny"]


@pytest.mark.parametrize("held", INTEGERS)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "gemma3_text"])
@torch.no_grad()
def test_a_model_answers_as_it_will_when_it_is_rounded(plain, texts, kind, held):
    model, _ = plain(kind)
    batch = texts(1, 20)[0]
    before = model(**batch)[0]
    with as_if_rounded(model, held):
        found = model(**batch)[0]
    assert torch.equal(model(**batch)[0], before)
    to_integers(model, held)
    right = model(**batch)[0]
    moved = (right - before).norm()
    # A state between two integers may fall to either side.
    assert (found - right).norm() < (0.2 if held == "int8" else 1e-3) * moved


def test_gradients_go_on_as_if_nothing_had_been_rounded():
    torch.manual_seed(0)
    plain, states = nn.Linear(40, 3), torch.randn(5, 40, requires_grad=True)
    slopes = torch.randn(5, 3)
    plain(states).backward(slopes)
    right = states.grad.clone(), plain.weight.grad.clone()
    states.grad = plain.weight.grad = None
    model = nn.Sequential(plain)
    with as_if_rounded(model, "int8"):
        model(states).backward(slopes)
    assert model[0] is plain
    for one, other in zip(right, (states.grad, plain.weight.grad), strict=True):
        assert 0 < (one - other).norm() / one.norm() < 0.02


def test_the_model_is_plain_again_whatever_happens(plain):
    model, _ = plain("gpt2")
    kinds = [type(part) for part in model.modules()]
    with pytest.raises(KeyError), as_if_rounded(model, "int4"):
        raise KeyError
    assert [type(part) for part in model.modules()] == kinds
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("held", ["int8", "int4"])
def test_a_model_that_was_taught_to_be_rounded_loses_less(finished, texts, held):
    teacher = open_whole(finished("bert")).module
    seen = texts(3, 9)

    def lost(student):
        with torch.no_grad():
            pairs = [(logits_of(teacher, batch), logits_of(student, batch)) for batch in seen]
        return sum(float((one - other).square().sum()) for one, other in pairs)

    untaught, student = trainable(teacher).eval(), trainable(teacher)
    kept = tuple(range(len(teacher.stack.layers)))
    settings = Distillation(steps=30, learning_rate=1e-3)
    with as_if_rounded(student.backbone, held):
        distil(teacher, student, kept, itertools.cycle(seen), settings, lambda *_: None)
        taught = lost(student)
    for model in (untaught, student):
        to_integers(model.backbone, held)
    assert lost(student) == pytest.approx(taught, rel=0.1)
    # With 8 bits there is too little to win in so few steps.
    assert held == "int8" or lost(student) < 0.7 * lost(untaught)
