"""A configuration made by a program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedllm
from fedllm.config import load_run_config

FILE = """name = "ward"
task = "classification"
[model]
path = "base"
[data]
train = "t.jsonl"
[privacy]
epsilon = 8.0
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "deep" / "run.toml"
    path.parent.mkdir()
    path.write_text(FILE)
    return path


def test_a_file_alone_is_read_as_the_command_reads_it(file):
    assert fedllm.configure(file) == load_run_config(file)
    assert fedllm.configure(str(file)) == load_run_config(file)


def test_changes_are_those_of_the_command(file):
    made = fedllm.configure(
        file, seed=3, privacy={"epsilon": np.float64(3)}, data={"sites": np.int64(4)}
    )
    overrides = ["seed=3", "privacy.epsilon=3.0", "data.sites=4"]
    assert made == load_run_config(file, overrides)
    for key in ("epsilon", "unit"):
        # The recipe fills in what nobody says.
        removed = fedllm.configure(file, privacy={key: None})
        assert removed == load_run_config(file, [f"privacy.{key}="])


def test_without_a_file_paths_count_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = fedllm.configure(
        name="ward", task="causal", model={"path": Path("base")}, data={"train": "t.jsonl"}
    )
    assert made.data.train == str(tmp_path / "t.jsonl")
    assert made.model.path == str(tmp_path / "base")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"epsilom": 3}}, "epsilon"),
        ({"name": {"of": 1}}, "name is a value"),
        ({"rounds": {"count": -1}}, "rounds.count"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_what_is_wrong_is_named(file, changes, words):
    with pytest.raises(fedllm.FedllmError) as raised:
        fedllm.configure(file, **changes)
    assert words in str(raised.value)
    assert raised.value.exit_code == 2
