"""A run's folder: taken over while it holds no checkpoint, and known by what it was made from."""

import json
import shutil
from pathlib import Path

import pytest

from fedllm.errors import ConfigError
from fedllm.files import write_json
from fedllm.locks import exclusive
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.folder import claim, finished_model, locked


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "data" / "corpus.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "the cat sat"}\n')
    return path


def config(corpus: Path, **sections) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {"name": "tiny", "data": {"train": str(corpus), "held_out": 0.1}, **sections}
    )


def half_made(out: Path) -> None:
    """Leave what a run leaves that failed before its first checkpoint."""
    for name in ("tokenizer", "tokens", ".tokens.x1", ".tokenizer.x2"):
        (out / name).mkdir()
    (out / "metrics.jsonl").write_text("{}\n")


def finish(out: Path) -> None:
    (out / "checkpoints" / "step-00000001").mkdir(parents=True)
    (out / "model").mkdir()
    write_json(out / "model" / "config.json", {})
    write_json(out / "summary.json", {})


@pytest.mark.parametrize("resume", [True, False])
def test_a_corrected_run_takes_a_failed_one_over(corpus, tmp_path, resume):
    out = tmp_path / "run"
    claim(config(corpus, training={"learning_rate": 9.0}), out, False)
    half_made(out)
    claim(config(corpus), out, resume)
    assert "9.0" not in (out / "run.toml").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["inputs.json", "run.toml"]


@pytest.mark.parametrize("resume", [True, False])
def test_the_same_run_keeps_what_was_made_whole(corpus, tmp_path, resume):
    out = tmp_path / "run"
    claim(config(corpus), out, False)
    half_made(out)
    claim(config(corpus), out, resume)
    assert sorted(p.name for p in out.iterdir()) == [
        "inputs.json",
        "run.toml",
        "tokenizer",
        "tokens",
    ]


def test_a_tokenizer_of_other_text_is_not_kept(corpus, tmp_path):
    out = tmp_path / "run"
    claim(config(corpus), out, False)
    half_made(out)
    corpus.write_text('{"text": "the dog sat"}\n')
    claim(config(corpus), out, True)
    assert not (out / "tokenizer").exists()


def test_a_folder_with_checkpoints_or_of_something_else_is_not_taken(corpus, tmp_path):
    out = tmp_path / "run"
    claim(config(corpus), out, False)
    (out / "checkpoints" / "step-00000005").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        claim(config(corpus), out, False)
    claim(config(corpus), out, True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.toml").write_text('name = "federated"\ntask = "classification"\n')
    for resume in (True, False):
        with pytest.raises(ConfigError, match="holds a run already"):
            claim(config(corpus), other, resume)
    assert "federated" in (other / "run.toml").read_text()


def test_two_processes_do_not_share_a_folder(corpus, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    busy = pytest.raises(ConfigError, match="another process")
    with exclusive(out / ".lock", "", ""), busy, locked(out):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"), locked(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"tokenizer": {"vocabulary": 512}}, "tokenizer.vocabulary"),
        ({"model": {"layers": 2}, "seed": 3}, "model.layers, seed"),
    ],
)
def test_a_model_of_other_settings_is_not_used(corpus, tmp_path, sections, words):
    out = tmp_path / "run"
    claim(config(corpus), out, False)
    assert finished_model(config(corpus), out) is None
    finish(out)
    assert finished_model(config(corpus, report={"log_every": 1}), out) == out / "model"
    with pytest.raises(ConfigError, match=f"{words}(?s:.*)made again"):
        finished_model(config(corpus, **sections), out)


def test_a_model_of_other_text_is_not_used_wherever_the_text_lies(corpus, tmp_path):
    out = tmp_path / "run"
    claim(config(corpus), out, False)
    finish(out)
    moved = shutil.copytree(corpus.parent, tmp_path / "moved") / corpus.name
    assert finished_model(config(moved), out) == out / "model"
    corpus.write_bytes(corpus.read_bytes())
    assert finished_model(config(corpus), out) == out / "model"
    corpus.write_text('{"text": "the dog sat"}\n')
    with pytest.raises(ConfigError, match=r"data\.train"):
        finished_model(config(corpus), out)


def test_a_model_of_which_nothing_is_known_or_left_is_not_used(corpus, tmp_path):
    out = tmp_path / "run"
    claim(config(corpus), out, False)
    finish(out)
    shutil.rmtree(out / "model")
    with pytest.raises(ConfigError, match="is gone"):
        finished_model(config(corpus), out)
    for content in ("", "[]", "[" * 100_000, "{}"):
        (out / "inputs.json").write_text(content)
        with pytest.raises(ConfigError, match="does not say"):
            finished_model(config(corpus), out)
    (out / "inputs.json").write_text(json.dumps({"made_from": 7, "files": [1]}))
    with pytest.raises(ConfigError, match="another configuration"):
        finished_model(config(corpus), out)


def test_another_model_to_start_from_is_noticed(corpus, tmp_path, tiny_checkpoint):
    start = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "start")
    out = tmp_path / "run"
    wanted = config(corpus, model={"start": str(start)})
    claim(wanted, out, False)
    finish(out)
    assert finished_model(wanted, out) == out / "model"
    (start / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model\.start"):
        finished_model(wanted, out)
