"""What is seen of an answer without a reward model, and which models are not kept."""

from __future__ import annotations

import pytest
import torch
from support.alignment_models import configuration

from fedllm.alignment.guards import Scale, look_at, objections, repeats, shaped, shares
from fedllm.alignment.rollouts import Answer

GUARDS = configuration(
    guards={
        "distinct": 0.5,
        "minimum_tokens": 2,
        "floor": -3.0,
        "cut_penalty": 1.0,
        "most_faulty": 0.02,
        "length_change": 0.2,
    }
).guards
END = 3


def answer(tokens: list[int], text: str | None = None, prompt: int = 1, ended: bool = True):
    words = " ".join(map(str, tokens)) if text is None else text
    return Answer((prompt,), (*tokens, END) if ended else tuple(tokens), words, ended)


def test_faults_are_found():
    answers = [
        answer([], ""),
        answer([9], " \n"),
        answer([9]),
        answer([9] * 12),
        answer([4, 5, 6, 7, 8, 9, 10, 11], ended=False),
        answer([4, 5, 6], prompt=2),
    ]
    looks = look_at(answers, GUARDS)
    assert [one.fault for one in looks] == ["empty", "empty", "short", "repeated", None, None]
    assert [one.cut for one in looks] == [False, False, False, False, True, False]
    assert [one.tokens for one in looks] == [0, 1, 1, 12, 8, 3]
    found = shares(looks)
    assert found["empty"] == 2 / 6
    assert found["short"] == found["repeated"] == found["cut"] == 1 / 6
    assert found["tokens"] == 25 / 6


def test_the_same_words_to_two_prompts_are_repeated_and_to_one_prompt_not():
    twice = [answer([4, 5, 6, 7], prompt=1), answer([4, 5, 6, 7], prompt=2)]
    assert [one.fault for one in look_at(twice, GUARDS)] == ["repeated", "repeated"]
    once = [answer([4, 5, 6, 7], prompt=1), answer([4, 5, 6, 7], prompt=1)]
    assert [one.fault for one in look_at(once, GUARDS)] == [None, None]
    short = [answer([4, 5], prompt=1), answer([4, 5], prompt=2)]
    assert [one.fault for one in look_at(short, GUARDS)] == [None, None]
    # Where prompts may well have one answer it is none; within an answer it still is.
    shared = GUARDS.model_copy(update={"shared_answers": True})
    assert [one.fault for one in look_at(twice, shared)] == [None, None]
    assert look_at([answer([9] * 12)], shared)[0].fault == "repeated"


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ([1] * 7, False),
        ([1] * 8, True),
        ([1, 2] * 8, True),
        (list(range(16)), False),
        # Said twice in full: 12 of 13 and more distinct runs are left.
        (list(range(8)) * 2, False),
        (list(range(8)) * 4, True),
    ],
)
def test_what_repeats_itself(tokens, wanted):
    assert repeats(tokens, 0.5) is wanted
    assert not repeats(tokens, 0.0)


def test_faulty_answers_get_the_floor_whatever_the_reward_model_says():
    answers = [answer([], ""), answer([4, 5, 6]), answer([9] * 12), answer([4, 5], ended=False)]
    rewards = torch.tensor([100.0, 4.0, -100.0, 4.0])
    found = shaped(rewards, look_at(answers, GUARDS), Scale(2.0, 2.0, 4.0), GUARDS)
    # The third one is below the floor already.
    assert found.tolist() == [-3.0, 1.0, -51.0, 0.0]


def test_what_is_longer_than_the_start_writes_loses_in_proportion():
    guards = GUARDS.model_copy(update={"length_penalty": 0.5})
    answers = [answer([4, 5]), answer([4, 5, 6, 7]), answer([4, 5, 6, 7, 8, 9])]
    found = shaped(torch.full((3,), 5.0), look_at(answers, guards), Scale(2.0, 3.0, 4.0), guards)
    assert found.tolist() == [1.0, *(1.0 - 0.5 * (one.length / 4 - 1) for one in answers[1:])]
    assert shaped(torch.ones(1), look_at([answer([])], guards), Scale(1.0, 1.0, 0.0), guards) <= -3


START = {"empty": 0.0, "short": 0.01, "repeated": 0.0, "tokens": 20.0, "kl": 0.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kl": 9.9}, []),
        ({"kl": 10.1}, ["kl.ceiling"]),
        ({"tokens": 23.9}, []),
        ({"tokens": 24.1}, ["24.1 tokens"]),
        ({"tokens": 15.9}, ["15.9 tokens"]),
        ({"repeated": 0.02}, []),
        ({"repeated": 0.025}, ["repeated"]),
        ({"empty": 0.5, "tokens": 1.0, "kl": 30.0}, ["kl.ceiling", "empty", "1.0 tokens"]),
    ],
)
def test_models_that_are_not_kept(change, words):
    found = objections({**START, **change}, START, GUARDS, 10.0)
    assert len(found) == len(words)
    assert all(word in one for word, one in zip(words, found, strict=True))
