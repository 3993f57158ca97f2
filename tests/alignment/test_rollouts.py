"""What is sampled, and what of it counts."""

from __future__ import annotations

import pytest
import torch
from support.alignment_models import opened, texts

from fedllm.alignment.rollouts import Answer, batch_of, sample


@pytest.fixture
def usable(start):
    return opened(start())


def prompts(usable, count: int = 6):
    return [usable.prompt(text, 8).ids for text in texts(count)]


def sampled(usable, asked, seed: int = 1, rows: int = 8):
    return sample(usable.require_generator(), asked, 8, seed, rows, usable.prompting.gap)


def test_tokens_are_those_that_were_drawn_with_the_end_that_was(usable):
    answers = sampled(usable, prompts(usable) * 4)
    ends = usable.require_generator().ends
    assert {one.ended for one in answers} == {True, False}
    for one in answers:
        assert (one.tokens[-1] in ends) == one.ended
        assert not ends & set(one.tokens[: one.length])
        assert one.length == len(one.tokens) - one.ended
        assert one.ended or one.length == 8
        words = usable.require_generator().tokenizer.decode(
            one.tokens[: one.length], skip_special_tokens=True
        )
        assert one.text == words


def test_whatever_is_sampled_beside_it_changes_no_answer(usable):
    asked = prompts(usable)
    together = sampled(usable, asked)
    assert together == [sampled(usable, [one])[0] for one in asked]
    assert together == sampled(usable, asked, rows=2)


def test_the_same_prompt_gets_other_answers_and_the_same_seed_the_same(usable):
    asked = prompts(usable, 1) * 6
    answers = sampled(usable, asked)
    assert len({one.tokens for one in answers}) > 1
    assert answers == sampled(usable, asked)
    assert answers != sampled(usable, asked, seed=2)


def test_tokens_come_as_often_as_the_model_says(usable):
    (prompt,) = prompts(usable, 1)
    answers = sampled(usable, [prompt] * 1000, rows=500)
    network = usable.require_generator().network.eval()
    with torch.no_grad():
        shares = network(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([one.tokens[0] for one in answers]), minlength=len(shares))
    spread = (shares * (1 - shares) / len(answers)).sqrt()
    assert bool(((counts / len(answers) - shares).abs() < 5 * spread + 1e-3).all())


def test_a_batch_counts_the_tokens_of_answers_and_nothing_else():
    answers = [Answer((5, 6, 7), (8, 3), "a"), Answer((5,), (9, 9, 9), "b", ended=False)]
    batch = batch_of(answers, pad=0)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 3, 0, 0, 0], [5, 9, 9, 9, 0, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [5, 4]
    assert batch["labels"].tolist() == [
        [-100, -100, -100, 8, 3, -100, -100, -100],
        [-100, 9, 9, 9, -100, -100, -100, -100],
    ]
