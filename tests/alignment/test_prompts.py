"""Prompts are read once each, and nobody is asked in two ways."""

from __future__ import annotations

import json

import pytest
from support.alignment_models import configuration, texts

from fedllm.alignment.prompts import deal_out, read_prompts
from fedllm.data.questions import question
from fedllm.errors import ConfigError, DataError


def dealt(asked: list[str], **sections):
    sections = {"prompts": {"selection": 4, "test": 5}, **sections}
    return deal_out(asked, configuration(**sections), lambda text: ((len(text),), len(text) % 2))


def test_a_prompt_is_for_one_use_alone():
    asked = [*texts(20), texts(20)[3], texts(20)[3]]
    found = dealt(asked)
    parts = [[one.text for one in part] for part in (found.learning, found.selection, found.test)]
    assert [len(part) for part in parts] == [11, 4, 5]
    assert sorted(text for part in parts for text in part) == sorted(texts(20))
    assert found.repeated == 2
    assert found.cut == sum(len(text) % 2 for text in texts(20))
    assert dealt(asked).test == found.test
    assert dealt(asked, seed=1).test != found.test


def test_all_prompts_come_before_any_comes_again():
    found = dealt(texts(20))
    steps = [found.of_step(step, 4, 7) for step in range(1, 12)]
    asked = [one.text for step in steps for one in step]
    own = sorted(one.text for one in found.learning)
    assert all(sorted(asked[start : start + 11]) == own for start in (0, 11, 22, 33))
    # A step by itself is the same as one in a row, and another pass has another order.
    assert found.of_step(5, 4, 7) == steps[4]
    assert asked[:11] != asked[11:22]


def test_too_few_prompts_are_told():
    with pytest.raises(ConfigError, match="12 different prompts: 9 are held out, and a step"):
        dealt(texts(12))


def test_prompts_come_from_a_column(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts(3)))
    config = configuration(prompts={"file": str(path), "column": "question"})
    assert [one.whole for one in read_prompts(config.prompts)] == texts(3)


def test_prompts_stand_behind_their_contexts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "Why?", "about": "It rains."},
        {"prompt": "When?"},
        {"prompt": "Where?", "about": ""},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configuration(prompts={"file": str(path), "context": "about"})
    found = [one.whole for one in read_prompts(config.prompts)]
    # As rankings have it, so that policy and reward model read what theirs read.
    assert found == ["It rains.\n\nWhy?", "When?", "Where?"]
    assert found[0] == question("Why?", "It rains.")
    wrong = configuration(prompts={"file": str(path), "context": "abuot"})
    with pytest.raises(DataError, match="has a field 'abuot'"):
        read_prompts(wrong.prompts)
    path.write_text('{"prompt": "Why?", "about": 3}\n')
    with pytest.raises(DataError, match="about"):
        read_prompts(config.prompts)
