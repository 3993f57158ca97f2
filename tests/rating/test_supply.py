"""Answers ahead of the rater."""

from __future__ import annotations

import threading
import time

import pytest
from support.rating import ORIGIN, QUESTIONS, answers_to, draw

from fedllm.errors import ConfigError, FedllmError
from fedllm.rating.answers import AnswerFile
from fedllm.rating.supply import Supply


@pytest.fixture
def file(tmp_path):
    return AnswerFile(tmp_path / "a.jsonl", ORIGIN)


def test_all_are_sampled_once_and_kept(file, tmp_path):
    left, asked = [], []

    def counting(question, given_up):
        asked.append(question)
        return draw(question, given_up)

    with Supply(file, QUESTIONS, counting) as supply:
        supply.finish(left.append)
        assert supply.left == 0
        assert supply.get(QUESTIONS[2]) == answers_to(QUESTIONS[2])
    assert asked == QUESTIONS
    assert left[-1] == 0
    again = AnswerFile(tmp_path / "a.jsonl", ORIGIN)
    with Supply(again, QUESTIONS) as supply:
        assert supply.get(QUESTIONS[2]) == answers_to(QUESTIONS[2])


def test_what_the_rater_waits_for_is_next(file):
    begun, go_on, asked = threading.Event(), threading.Event(), []

    def slow(question, given_up):
        asked.append(question)
        begun.set()
        assert go_on.wait(30)
        return answers_to(question)

    with Supply(file, QUESTIONS, slow) as supply:
        assert begun.wait(30)
        assert supply.get(QUESTIONS[2]) is None
        go_on.set()
        assert supply.get(QUESTIONS[2], 30) == answers_to(QUESTIONS[2])
    assert asked[:2] == [QUESTIONS[0], QUESTIONS[2]]


def test_who_leaves_waits_for_nothing(file):
    def endless(question, given_up):
        while not given_up():
            time.sleep(0.01)

    with Supply(file, QUESTIONS, endless) as supply:
        assert supply.get(QUESTIONS[0]) is None
    assert file.missing(QUESTIONS) == QUESTIONS


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("Zebediah"), r"cannot be sampled \(RuntimeError\)"),
        (ConfigError("no room", "give less"), "no room"),
    ],
)
def test_what_breaks_is_told_to_who_waits(error, told, file):
    def broken(question, given_up):
        if question is QUESTIONS[1]:
            raise error
        return answers_to(question)

    with Supply(file, QUESTIONS, broken) as supply:
        with pytest.raises(FedllmError, match=told) as found:
            supply.finish()
        assert "Zebediah" not in str(found.value)
        # What was sampled before is there.
        assert supply.get(QUESTIONS[0]) == answers_to(QUESTIONS[0])
        with pytest.raises(FedllmError, match=told):
            supply.get(QUESTIONS[2], 30)
