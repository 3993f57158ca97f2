"""What the model says of tokens, with which adapter, and of nothing but tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.alignment_models import opened, texts

from fedllm.alignment.policy import Policy, ValueHead, by_answer, by_piece
from fedllm.alignment.rollouts import Answer, sample


@pytest.fixture
def usable(start):
    return opened(start())


def answers_of(usable, count: int = 5) -> list[Answer]:
    asked = [usable.prompt(text, 8).ids for text in texts(count)]
    return sample(usable.require_generator(), asked, 8, 1, 8)


def plainly(policy: Policy, answer: Answer) -> torch.Tensor:
    """The same by the network's own logits of one answer without padding."""
    ids = torch.tensor([[*answer.prompt, *answer.tokens]])
    with torch.no_grad():
        logits = policy.model.module.backbone(ids).logits[0]
    shares = logits.double().log_softmax(-1)[len(answer.prompt) - 1 : -1]
    return shares[torch.arange(len(answer.tokens)), torch.tensor(answer.tokens)]


def each(policy: Policy, answers: list[Answer], rows: int = 3, reference: bool = False):
    pieces = policy.pieces(answers, rows)
    found = policy.reference(pieces) if reference else policy.log_probs(pieces)
    return by_answer(pieces, found)


@pytest.mark.parametrize("last_layers", [1, 3])
def test_log_probabilities_are_the_networks_own(start, last_layers):
    usable = opened(start(lora={"rank": 2, "last_layers": last_layers}))
    policy, answers = Policy(usable.released.model), answers_of(usable)
    pieces = policy.pieces(answers, 3)
    # Two of three layers are run once, or none.
    assert all(("states" in piece.batch) == (last_layers < 3) for piece in pieces)
    for found, answer in zip(each(policy, answers), answers, strict=True):
        assert len(found) == len(answer.tokens)
        assert torch.allclose(found.double(), plainly(policy, answer), atol=2e-5)


def test_the_reference_is_the_start_with_its_adapter_and_the_model_stays_as_it_is(usable):
    policy = Policy(usable.released.model)
    answers = answers_of(usable)
    wanted = [plainly(policy, answer) for answer in answers]
    moved = policy.start + np.float32(0.3)
    policy.model.set_adapter(moved)
    assert not torch.allclose(each(policy, answers)[0].double(), wanted[0], atol=1e-3)
    for found, right in zip(each(policy, answers, reference=True), wanted, strict=True):
        assert torch.allclose(found.double(), right, atol=2e-5)
    assert np.array_equal(policy.adapter, moved)
    # Without any adapter it is another model.
    policy.model.set_adapter(np.zeros_like(moved))
    assert not torch.allclose(plainly(policy, answers[0]), wanted[0], atol=1e-3)


def test_no_padding_counts(usable):
    policy, answers = Policy(usable.released.model), answers_of(usable)
    (piece,) = policy.pieces(answers, 8)
    assert piece.tokens == sum(len(one.tokens) for one in answers)
    assert piece.batch["input_ids"].numel() > piece.tokens
    assert len(policy.read(piece).log_probs) == piece.tokens
    # Beside a much longer one, so with more padding, each says the same.
    longest = Answer(answers[0].prompt, answers[0].tokens[:1] * 15, "x", ended=False)
    wide = each(policy, [*answers, longest], rows=8)
    for found, right in zip(wide, each(policy, answers, rows=8), strict=False):
        assert torch.allclose(found, right, atol=1e-5)


def test_only_the_adapter_has_a_gradient_and_the_value_head_gives_it_none(usable):
    policy, answers = Policy(usable.released.model), answers_of(usable)
    head = ValueHead(policy.width)
    torch.nn.init.ones_(head.linear.weight)
    (piece,) = policy.pieces(answers, 8)
    read = policy.read(piece)
    head(read.states).sum().backward()
    assert all(p.grad is None for p in policy.trained)
    assert head.linear.weight.grad.any()
    policy.read(piece).log_probs.sum().backward()
    own = {id(p) for p in policy.trained}
    for parameter in policy.model.module.parameters():
        assert (parameter.grad is not None) == (id(parameter) in own)


def test_answers_and_pieces_are_two_views_of_the_same_tokens(usable):
    policy, answers = Policy(usable.released.model), answers_of(usable)
    pieces = policy.pieces(answers, 2)
    found = policy.log_probs(pieces)
    again = by_piece(pieces, by_answer(pieces, found))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
