"""Files of prompts: what is read, and what is refused without a word of it."""

from __future__ import annotations

import json

import pytest

from fedllm.errors import DataError
from fedllm.rating.prompts import read_questions, unit_of

SECRET = "Zebediah"


def written(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_rows_are_read(tmp_path):
    rows = [
        {"id": "a", "prompt": "p", "context": "c"},
        {"prompt": "p"},
        {"prompt": "q", "context": None},
    ]
    found = read_questions(written(tmp_path / "p.jsonl", *rows))
    assert [one.row for one in found] == [1, 2, 3]
    assert [one.asked for one in found] == ["c\n\np", "p", "q"]
    assert (found[0].key, found[0].unit) == ("a", unit_of("p", "c"))
    assert SECRET not in repr(read_questions(written(tmp_path / "q.jsonl", {"prompt": SECRET})))
    (tmp_path / "p.csv").write_text("id,prompt\n7,what\n")
    assert [one.prompt for one in read_questions(str(tmp_path / "p.csv"))] == ["what"]


def test_a_column_names_the_person(tmp_path):
    path = written(tmp_path / "p.jsonl", {"prompt": "p", "patient": 7}, {"prompt": "q"})
    assert [one.person for one in read_questions(path)] == ["", ""]
    with pytest.raises(DataError, match=r"row 2.*'patient' is null"):
        read_questions(path, "patient")
    path = written(
        tmp_path / "p.jsonl", {"prompt": "p", "patient": 7}, {"prompt": "q", "patient": "x"}
    )
    assert [one.person for one in read_questions(path, "patient")] == ["7", "x"]
    with pytest.raises(DataError, match="no column 'person'"):
        read_questions(path, "person")


def test_no_two_prompts_have_one_unit():
    """The end of a prompt cannot pass for a context."""
    assert unit_of("a", "b") != unit_of("ab", "") != unit_of("", "ab")


def test_white_space_makes_no_other_prompt(tmp_path):
    """It makes no other event for a run either, so that none is charged twice."""
    assert unit_of("a  b\n", "") == unit_of("a b", " ")
    path = written(tmp_path / "p.jsonl", {"prompt": "a b"}, {"prompt": "a  b "})
    with pytest.raises(DataError, match="has the prompt and the context"):
        read_questions(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": " "}, "'prompt' is empty"),
        ({"prompt": None}, "'prompt' is null"),
        ({"text": SECRET}, "'prompt' is null"),
        ({"prompt": 3}, "not text"),
        ({"prompt": SECRET, "context": 3}, "'context' is of type int"),
        ({"prompt": "first"}, "has the prompt and the context of"),
    ],
)
def test_a_wrong_row_is_named(row, words, tmp_path):
    path = written(tmp_path / "p.jsonl", {"prompt": "first"}, row)
    with pytest.raises(DataError, match=words) as error:
        read_questions(path)
    assert "p.jsonl row 2" in error.value.message
    assert SECRET not in str(error.value)
    assert error.value.remedy


def test_a_file_without_prompts(tmp_path):
    with pytest.raises(DataError, match="holds no prompts"):
        read_questions(written(tmp_path / "p.jsonl"))
    with pytest.raises(DataError, match="no column 'prompt'") as error:
        read_questions(written(tmp_path / "q.jsonl", {"question": "p"}))
    assert "name the column" in error.value.remedy
