"""Kept ratings and answers are read for ever, and written today as they were then."""

from __future__ import annotations

import shutil

import pytest
from golden.kept import V8
from golden.making.ratings import DRAWN, ORIGIN, QUESTION, make, ratings

from fedllm.rating.answers import AnswerFile
from fedllm.rating.store import read_ratings

KEPT = V8 / "ratings"


def test_ratings_are_read():
    assert read_ratings([KEPT / "ratings.jsonl"]) == ratings()


def test_answers_are_read(tmp_path):
    shutil.copytree(KEPT, tmp_path / "kept")
    found = AnswerFile(tmp_path / "kept" / "ratings.answers.jsonl", ORIGIN)
    assert found.get(QUESTION) == DRAWN


@pytest.mark.parametrize("name", ["ratings.jsonl", "ratings.answers.jsonl"])
def test_both_are_written_as_they_were(name, tmp_path):
    make(tmp_path)
    assert (tmp_path / "ratings" / name).read_bytes() == (KEPT / name).read_bytes()
