"""One step of learning: its gradient by hand, and what hangs on which model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.alignment_models import configuration, opened, texts
from support.devices import DEVICES, models_on

from fedllm.alignment.learning import Learner, Lesson
from fedllm.alignment.policy import Policy, by_answer, by_piece
from fedllm.alignment.rollouts import sample
from fedllm.errors import TrainingError
from fedllm.randomness import RandomStream
from fedllm.serving.usable import open_usable

# One optimiser step, whose gradient is as it is.
ONCE = {"epochs": 1, "minibatches": 1, "gradient_norm": 1e9, "microbatch_size": 3}
GROUP = 2


@pytest.fixture
def learner(start):
    def make(algorithm: str = "grpo", **training) -> Learner:
        usable = opened(start())
        config = configuration(training={**ONCE, **training})
        return Learner(Policy(usable.released.model), config, algorithm)

    return make


def answers_of(learner: Learner, start):
    usable = opened(start())
    asked = [usable.prompt(text, 8).ids for text in texts(4) for _ in range(GROUP)]
    return sample(usable.require_generator(), asked, 8, 1, 8)


def plain_log_probs(policy: Policy, answer) -> torch.Tensor:
    ids = torch.tensor([[*answer.prompt, *answer.tokens]])
    shares = policy.model.module.backbone(ids).logits[0].float().log_softmax(-1)
    places = torch.arange(len(answer.prompt) - 1, ids.shape[1] - 1)
    return shares[places, torch.tensor(answer.tokens)]


def gradients(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.trained]).clone()


def learn(learner: Learner, lesson: Lesson, coefficient: float) -> torch.Tensor:
    learner.learn(lesson, coefficient, RandomStream.seeded(1, "test"))
    return gradients(learner.policy)


def by_hand(learner: Learner, answers, sampled, reference, advantages, coefficient: float):
    """The gradient of the mean over all tokens of all answers, one answer after the other."""
    policy, total = learner.policy, torch.zeros(())
    parts = zip(answers, sampled, reference, advantages, strict=True)
    for answer, before, other, better in parts:
        now = plain_log_probs(policy, answer)
        ratio = torch.exp(now - before)
        clipped = torch.clamp(ratio, 0.8, 1.2)
        loss = -torch.minimum(ratio * better, clipped * better)
        apart = other - now
        total = total + (loss + coefficient * (torch.exp(apart) - 1 - apart)).sum()
    for parameter in policy.trained:
        parameter.grad = None
    (total / sum(len(one.tokens) for one in answers)).backward()
    return gradients(policy)


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_gradient_is_that_of_the_formula(learner, start, algorithm, coefficient):
    made = learner(algorithm)
    answers = answers_of(made, start)
    before = made.look(answers)
    # The model has moved since it sampled, so that ratios are not 1.
    made.policy.model.set_adapter(made.policy.adapter + np.float32(0.05))
    rewards = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0, 0.0, -3.0, 1.0], dtype=torch.float64)
    lesson = made.lesson(before, rewards, GROUP, coefficient)
    parts = (before.log_probs, before.reference, lesson.advantages)
    sampled, reference, advantages = (by_answer(before.pieces, one) for one in parts)
    own = coefficient if algorithm == "grpo" else 0.0
    wanted = by_hand(made, answers, sampled, reference, advantages, own)
    start_of_step = made.policy.adapter
    found = learn(made, lesson, coefficient)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-6)
    # And downhill: what was said to be better became likelier.
    assert not np.array_equal(made.policy.adapter, start_of_step)
    pieces = before.pieces
    now = by_answer(pieces, made.policy.log_probs(pieces))
    gain = sum(float((a * (n - s)).sum()) for a, n, s in zip(advantages, now, sampled, strict=True))
    made.policy.model.set_adapter(start_of_step)
    then = by_answer(pieces, made.policy.log_probs(pieces))
    before_gain = sum(
        float((a * (n - s)).sum()) for a, n, s in zip(advantages, then, sampled, strict=True)
    )
    assert gain > before_gain


def test_with_equal_rewards_only_the_distance_is_learned_and_it_shrinks(learner, start):
    made = learner(learning_rate=1e-3)
    answers = answers_of(made, start)
    made.policy.model.set_adapter(made.policy.adapter + np.float32(0.2))
    before = made.look(answers)
    lesson = made.lesson(before, torch.ones(8, dtype=torch.float64), GROUP, 0.5)
    assert not any(bool(part.any()) for part in lesson.advantages)
    learn(made, lesson, 0.5)
    assert made.look(answers).kl < before.kl


def test_the_reward_of_ppo_comes_with_the_last_token_drawn(learner, start):
    made = learner("ppo")
    answers = answers_of(made, start)
    assert {one.ended for one in answers} == {True, False}
    rewards = torch.arange(1.0, 9.0, dtype=torch.float64)
    lesson = made.lesson(made.look(answers), rewards, GROUP, 0.0)
    # The head is zero, and nothing was paid: what is still to come is the reward, less each step.
    for answer, reward, returns in zip(
        answers, rewards, by_answer(lesson.sampled.pieces, lesson.returns), strict=True
    ):
        assert len(returns) == len(answer.tokens)
        assert returns[-1].item() == pytest.approx(reward.item(), rel=1e-6)
        ages = torch.arange(len(returns) - 1, -1, -1)
        assert torch.allclose(returns, reward.float() * 0.95**ages, rtol=1e-5)


def test_the_head_learns_what_to_expect(learner, start):
    made = learner("ppo", epochs=8)
    answers = answers_of(made, start)
    lesson = made.lesson(made.look(answers), torch.full((8,), 2.0), GROUP, 0.0)
    errors = [
        float((values - returns).square().sum())
        for values, returns in zip(lesson.values, lesson.returns, strict=True)
    ]
    made.learn(lesson, 0.0, RandomStream.seeded(1, "test"))
    with torch.no_grad():
        now = [made.values(made.policy.read(piece).states) for piece in lesson.sampled.pieces]
    left = [float((v - r).square().sum()) for v, r in zip(now, lesson.returns, strict=True)]
    assert sum(left) < sum(errors)


def test_what_is_no_number_ends_it_and_leaves_the_model(learner, start):
    made = learner()
    answers = answers_of(made, start)
    before = made.look(answers)
    lesson = made.lesson(before, torch.full((8,), float("nan")), GROUP, 0.0)
    kept = made.policy.adapter
    with pytest.raises(TrainingError, match="diverged"):
        made.learn(lesson, 0.0, RandomStream.seeded(1, "test"))
    assert np.array_equal(made.policy.adapter, kept)


def test_what_is_kept_goes_on_to_the_bit(learner, start):
    made, other = learner("ppo"), learner("ppo")
    answers = answers_of(made, start)
    rewards = torch.arange(8.0)

    def step(one: Learner, number: int) -> None:
        lesson = one.lesson(one.look(answers), rewards, GROUP, 0.1)
        one.learn(lesson, 0.1, RandomStream.seeded(number, "test"))

    step(made, 1)
    other.policy.model.set_adapter(made.policy.adapter)
    other.restore({name: values.clone() for name, values in made.tensors().items()})
    for one in (made, other):
        step(one, 2)
    assert np.array_equal(made.policy.adapter, other.policy.adapter)
    for name, values in made.tensors().items():
        assert torch.equal(values, other.tensors()[name])
    assert by_piece([], []) == []


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_gpu_learns_what_the_processor_does(learner, start, algorithm, device):
    made = learner(algorithm)
    answers = answers_of(made, start)
    rewards = torch.arange(8.0, dtype=torch.float64)

    def steps(one: Learner) -> None:
        for number in range(2):
            lesson = one.lesson(one.look(answers), rewards, GROUP, 0.1)
            one.learn(lesson, 0.1, RandomStream.seeded(number, "test"))
            kept = {name: values.cpu().clone() for name, values in one.tensors().items()}
            one.restore(kept)

    steps(made)
    with models_on(device):
        model = open_usable(start(), device="cuda").released.model
        other = Learner(Policy(model), configuration(training=ONCE), algorithm)
        assert other.policy.model.device.type != "cpu"
        steps(other)
        assert np.allclose(other.policy.adapter, made.policy.adapter, atol=1e-4)
        assert other.look(answers).kl == pytest.approx(made.look(answers).kl, rel=1e-3)
