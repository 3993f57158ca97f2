"""The configuration of an alignment is read as strictly as a run's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedllm.config import parse, parse_toml, to_toml
from fedllm.config.alignment import AlignConfig, load_align_config
from fedllm.errors import ConfigError

TEXT = """
name = "aligned"
[model]
start = "runs/start"
[reward]
run = "../reward"
[prompts]
file = "prompts.jsonl"
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "align.toml"
    path.write_text(TEXT)
    return path


def test_places_count_from_the_files_folder(file):
    config = load_align_config(file)
    assert config.model.start == str(file.parent / "runs/start")
    assert config.reward.run == str(file.parent.parent / "reward")
    assert config.prompts.file == str(file.parent / "prompts.jsonl")
    assert config.reward.judge is None
    assert parse(AlignConfig, parse_toml(to_toml(config), "x"), "x") == config


@pytest.mark.parametrize(
    ("change", "words", "remedy"),
    [
        ("kl.target=12", "kl.target = 12 must be smaller than kl.ceiling = 10", ""),
        ("training.step=3", "unknown key 'training.step'", "did you mean 'training.steps'?"),
        ("guards.floor=1", "guards.floor = 1", ""),
        ("answers.temperature=0.7", "unknown key 'answers.temperature'", "known keys here"),
        ("prompts.selection=0", "prompts.selection = 0", ""),
        ("reward.run=", "key 'reward.run' is missing", "add 'reward.run', a text"),
    ],
)
def test_what_is_wrong_is_named(file, change, words, remedy):
    with pytest.raises(ConfigError) as caught:
        load_align_config(file, [change])
    assert words in caught.value.message
    assert remedy in caught.value.remedy


def test_a_change_of_a_key_is_taken(file):
    assert load_align_config(file, ["kl.target="]).kl.target == 4.0
    assert load_align_config(file, ["training.steps=7"]).training.steps == 7


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_example_begins_where_its_runs_end(algorithm):
    examples = Path(__file__).resolve().parents[2] / "examples/preferences"
    config = load_align_config(examples / f"align_{algorithm}.toml")
    text = (examples / "README.md").read_text()
    assert f"fedllm align {algorithm} examples/preferences/align_{algorithm}.toml" in text
    for place in (config.model.start, config.reward.run, config.reward.judge):
        assert Path(place).name in text or Path(place).name == "preferences-reward"
