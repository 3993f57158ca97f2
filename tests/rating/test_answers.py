"""Answers are kept: of one model, in one way."""

from __future__ import annotations

import pytest
from support.rating import ORIGIN, QUESTIONS, answers_to, lines

from fedllm.errors import ConfigError
from fedllm.rating.answers import AnswerFile, Drawn


def test_answers_come_back(tmp_path):
    path = tmp_path / "a.jsonl"
    AnswerFile(path, ORIGIN).add(QUESTIONS[0], answers_to(QUESTIONS[0]))
    AnswerFile(path, ORIGIN).add(QUESTIONS[1], Drawn(("one", "two"), 7, (1,)))
    found = AnswerFile(path, ORIGIN)
    assert found.get(QUESTIONS[0]) == answers_to(QUESTIONS[0])
    assert found.get(QUESTIONS[1]) == Drawn(("one", "two"), 7, (1,))
    assert not Drawn(("one",)).can_be_ranked
    assert found.missing(QUESTIONS) == [QUESTIONS[2]]
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(lines(path)) == 3
    # Prompts are not said twice.
    assert QUESTIONS[0].context not in path.read_text()


def test_answers_of_another_model_or_way_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    AnswerFile(path, ORIGIN)
    more = ORIGIN.sampling.model_copy(update={"answers": 4})
    with pytest.raises(ConfigError, match="--answers 3"):
        AnswerFile(path, ORIGIN.model_copy(update={"sampling": more}))
    other = ORIGIN.model.model_copy(update={"name": "next", "fingerprint": "cd" * 32})
    with pytest.raises(ConfigError, match="another model") as error:
        AnswerFile(path, ORIGIN.model_copy(update={"model": other}))
    assert "abababab" in error.value.message
    assert "--out" in error.value.remedy


def test_a_file_without_its_first_line_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    AnswerFile(path, ORIGIN).add(QUESTIONS[0], answers_to(QUESTIONS[0]))
    path.write_text(path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ConfigError, match="does not say which model"):
        AnswerFile(path, ORIGIN)


def test_a_crash_while_the_first_line_was_written(tmp_path):
    path = tmp_path / "a.jsonl"
    AnswerFile(path, ORIGIN)
    path.write_bytes(path.read_bytes()[:20])
    AnswerFile(path, ORIGIN).add(QUESTIONS[0], answers_to(QUESTIONS[0]))
    assert AnswerFile(path, ORIGIN).get(QUESTIONS[0]) == answers_to(QUESTIONS[0])
