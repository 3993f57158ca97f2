"""A key is explained, also where its name is nearly right."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError
from fedllm.reference.explaining import explained, recipe_words
from fedllm.reference.kinds import kind_called


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("lora.method", "lora.method"),
        ("lora.metod", "lora.method"),
        ("LoRA.Method", "lora.method"),
        ("privacy.epsilno", "privacy.epsilon"),
        ("min-sites", "min_sites"),
        ("privacy.epsilon=3", "privacy.epsilon"),
        ("[privacy]", "privacy"),
        ("privcy", "privacy"),
        ("method", "method"),
        ("training.rank", "lora.rank"),
    ],
)
def test_what_a_word_is_taken_for(asked, taken):
    found = explained(asked)
    assert found.taken_for == taken
    assert found.keys or found.sections


def test_a_key_of_several_kinds_is_explained_for_each():
    assert {key.kind for key in explained("training.learning_rate").keys} == {
        "run",
        "pretraining",
        "alignment",
    }
    (key,) = explained("training.learning_rate", kind_called("alignment")).keys
    assert key.default == "0.0001"


@pytest.mark.parametrize("asked", ["zzzzzz", "", "."])
def test_what_is_like_nothing_is_refused(asked):
    with pytest.raises(ConfigError, match="there is no key"):
        explained(asked)


def test_what_could_be_several_is_asked_back():
    with pytest.raises(ConfigError) as caught:
        explained("lora.epsilon")
    assert "privacy.epsilon" in caught.value.remedy
    assert "budget.epsilon" in caught.value.remedy


def test_the_recipe_is_told_in_numbers():
    (key,) = explained("rounds.count").keys
    assert recipe_words(key).startswith("100 (classification); 30 (")
    (key,) = explained("rounds.timeout_s").keys
    assert recipe_words(key) == ""


def test_the_command():
    shown = CliRunner().invoke(app, ["config", "explain", "rounds.cuont"])
    assert shown.exit_code == 0
    assert "this is 'rounds.count'" in shown.output
    assert "--set rounds.count=10" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    plain = CliRunner().invoke(app, ["config", "explain", "rounds.count", "--json"])
    (key,) = json.loads(plain.output)["keys"]
    assert key["recipe"]["classification"] == 100
    section = CliRunner().invoke(app, ["config", "explain", "budget"])
    assert "[budget] of a site's policy" in section.output


def test_the_command_prints_the_line_for_editors(tmp_path):
    line = CliRunner().invoke(app, ["config", "schema", "site"]).output.strip()
    assert line.startswith("#:schema file:///")
    assert line.endswith("/site.schema.json")
    copy = tmp_path / "site.schema.json"
    out = CliRunner().invoke(app, ["config", "schema", "site", "--out", str(copy)])
    assert out.output.strip() == "#:schema ./site.schema.json"
    printed = CliRunner().invoke(app, ["config", "schema", "site", "--json"]).output
    assert json.loads(copy.read_text()) == json.loads(printed)
