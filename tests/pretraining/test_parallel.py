"""Two processes under torchrun do what one does, and one goes on where two stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedllm.errors import ConfigError
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.run import run_pretraining
from fedllm.randomness import RandomStream

WORDS = "one two three four five six seven eight nine ten"

PROGRAM = """
import pathlib, sys
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.run import run_pretraining

config = PretrainConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text())
run_pretraining(config, pathlib.Path(sys.argv[2]), resume="resume" in sys.argv)
"""


def config(folder: Path) -> PretrainConfig:
    words = WORDS.split()
    picks = RandomStream.seeded(0).below(len(words), 200 * 15).reshape(200, 15)
    corpus = folder / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"text": " ".join(words[i] for i in row)}) + "\n" for row in picks)
    )
    return PretrainConfig.model_validate(
        {
            "name": "two",
            "data": {"train": str(corpus), "held_out": 0.2},
            "tokenizer": {"vocabulary": 320},
            "model": {"layers": 1, "width": 32, "heads": 2, "inner": 64},
            "training": {
                "tokens": 12 * 8 * 16,
                "sequence_length": 16,
                "batch_rows": 8,
                "microbatch_rows": 2,
                "precision": "fp32",
                "threads": 1,
            },
            "report": {"log_every": 1, "evaluate_every": 4, "checkpoint_every": 4},
        }
    )


def under_torchrun(settings: Path, out: Path, *words: str) -> None:
    program = settings.with_name("program.py")
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launch, str(program), str(settings), str(out), *words],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def curve(out: Path, key: str) -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def test_two_processes_follow_the_curve_of_one_and_one_goes_on_where_they_stopped(tmp_path):
    run = config(tmp_path)
    settings = tmp_path / "config.json"
    settings.write_text(run.model_dump_json())
    run_pretraining(run, tmp_path / "one")
    under_torchrun(settings, tmp_path / "two")
    for key in ("loss", "gradient_norm", "bits_per_byte"):
        one, two = curve(tmp_path / "one", key), curve(tmp_path / "two", key)
        assert len(one) == {"loss": 12, "gradient_norm": 12, "bits_per_byte": 4}[key]
        assert two == pytest.approx(one, rel=2e-4), key
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2

    back_to_step_8(tmp_path / "two")
    run_pretraining(run, tmp_path / "two", resume=True)
    assert curve(tmp_path / "two", "loss") == pytest.approx(
        curve(tmp_path / "one", "loss"), rel=2e-4
    )


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(tmp_path):
    run = config(tmp_path)
    settings = tmp_path / "config.json"
    settings.write_text(run.model_dump_json())
    run_pretraining(run, tmp_path / "one")
    expected = curve(tmp_path / "one", "loss")
    back_to_step_8(tmp_path / "one")
    under_torchrun(settings, tmp_path / "one", "resume")
    assert curve(tmp_path / "one", "loss") == pytest.approx(expected, rel=2e-4)


def back_to_step_8(out: Path) -> None:
    shutil.rmtree(out / "checkpoints" / "step-00000012")
    (out / "summary.json").unlink()


def test_a_batch_that_cannot_be_dealt_out_is_refused(tmp_path, monkeypatch):
    import torch

    from fedllm.pretraining import run as module
    from fedllm.pretraining.parallel import World

    world = World(0, 3, torch.device("cpu"))
    monkeypatch.setattr(World, "wait", lambda self: None)
    with pytest.raises(ConfigError, match="cannot be dealt to 3 processes"):
        module._run(config(tmp_path), tmp_path / "run", module.Silent(), False, world)
