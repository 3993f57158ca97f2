"""Configurations are read strictly and written so that they read back."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedllm.config import parse, to_toml
from fedllm.errors import ConfigError
from fedllm.pretraining.config import PretrainConfig, load_pretrain_config

TEXT = """
name = "x"
[data]
train = ["a.jsonl", "${TEXTS:-more}/b.txt"]
text = ["text", "{q}\\n{a}"]
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    return path


def test_paths_count_from_the_file(file):
    config = load_pretrain_config(file, ["training.tokens=4096", "data.evaluation=e.jsonl"])
    assert config.data.train == (f"{file.parent}/a.jsonl", f"{file.parent}/more/b.txt")
    assert config.data.evaluation == (f"{file.parent}/e.jsonl",)
    assert config.data.text_of(1) == "{q}\n{a}"
    assert config.training.steps == 1


def test_a_byte_order_mark_is_no_part_of_it(file):
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_pretrain_config(file).name == "x"


def test_a_written_configuration_reads_back(file):
    config = load_pretrain_config(file)
    assert parse(PretrainConfig, tomllib.loads(to_toml(config)), "x") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.token=1", "did you mean 'training.tokens'"),
        ("objective=masked", "'llama' is trained with objective = 'causal'"),
        ("data.weights=[1.0]", "has 1 entries; it needs one for each of the 2 of data.train"),
        (
            "data.text=['a', 'b', 'c']",
            "has 3 entries; it needs one, or one for each of the 2 of data.train",
        ),
        ("tokenizer.kind=wordpiece", "needs model.architecture = 'bert'"),
        ("training.tokens=0", "whole number, above 0"),
        ("data.evaluation_text=['a', 'b']", "has 2 entries; it needs one, or one for each of the"),
    ],
)
def test_wrong_values_are_refused_with_reason(file, override, message):
    with pytest.raises(ConfigError, match=message):
        load_pretrain_config(file, [override])


def test_more_steps_than_a_checkpoint_can_name_are_refused(file):
    with pytest.raises(ConfigError, match="99,999,999 steps"):
        load_pretrain_config(file, [f"training.tokens={10**20}"])


def test_a_sharded_run_is_not_compiled(file):
    with pytest.raises(ConfigError, match="cannot both be true"):
        load_pretrain_config(file, ["training.compile=true", "training.sharded=true"])


def test_the_command_runs(tmp_path, monkeypatch):
    import typer

    from fedllm.commands.pretrain import pretrain

    (tmp_path / "c.jsonl").write_text(
        "".join(f'{{"text": "line {i} of some text that repeats"}}\n' for i in range(80))
    )
    (tmp_path / "run.toml").write_text(
        'name = "x"\n[data]\ntrain = "c.jsonl"\nheld_out = 0.1\n[tokenizer]\nvocabulary = 300\n'
        "[model]\nlayers = 1\nwidth = 16\nheads = 1\ninner = 32\n"
        "[training]\ntokens = 128\nsequence_length = 16\nbatch_rows = 4\n"
    )
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(pretrain)
    result = CliRunner().invoke(app, ["run.toml", "--set", "seed=3"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "x" / "model" / "config.json").exists()
    assert "seed = 3" in (tmp_path / "runs" / "x" / "run.toml").read_text()
