"""Two processes under torchrun do what one does, whole or sharded, and take turns with one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from transformers import AutoModelForCausalLM

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


def config(folder: Path, **training) -> PretrainConfig:
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
                **training,
            },
            "report": {
                "log_every": 1,
                "evaluate_every": 4,
                "checkpoint_every": 4,
                "prompts": ["one two"],
                "sample_tokens": 3,
            },
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
        timeout=900,
    )


def curve(out: Path, key: str) -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[PretrainConfig, Path]:
    folder = tmp_path_factory.mktemp("alone")
    run = config(folder)
    run_pretraining(run, folder / "run")
    return run, folder / "run"


def settings(run: PretrainConfig, folder: Path, sharded: bool) -> Path:
    training = run.training.model_copy(update={"sharded": sharded})
    path = folder / "config.json"
    path.write_text(run.model_copy(update={"training": training}).model_dump_json())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_follow_the_curve_of_one_and_one_goes_on_where_they_stopped(
    alone, tmp_path, sharded
):
    run, one = alone
    two = tmp_path / "two"
    under_torchrun(settings(run, tmp_path, sharded), two)
    for key in ("loss", "gradient_norm", "bits_per_byte"):
        assert len(curve(one, key)) == {"loss": 12, "gradient_norm": 12, "bits_per_byte": 4}[key]
        assert curve(two, key) == pytest.approx(curve(one, key), rel=1e-3), key
    assert curve(two, "samples") == curve(one, "samples")
    summary = json.loads((two / "summary.json").read_text())
    assert summary["processes"] == 2
    one_model, two_model = (
        AutoModelForCausalLM.from_pretrained(f / "model", local_files_only=True) for f in (one, two)
    )
    for name, parameter in one_model.named_parameters():
        assert torch.allclose(parameter, two_model.get_parameter(name), atol=5e-3), name

    assert set(parts_of_parameters(two)) == ({2} if sharded else {1})
    back_to_step_8(two)
    run_pretraining(run, two, resume=True)
    assert curve(two, "loss") == pytest.approx(curve(one, "loss"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_go_on_where_one_stopped(alone, tmp_path, sharded):
    run, one = alone
    out = tmp_path / "run"
    shutil.copytree(one, out)
    back_to_step_8(out)
    under_torchrun(settings(run, tmp_path, sharded), out, "resume")
    assert curve(out, "loss") == pytest.approx(curve(one, "loss"), rel=1e-3)


def parts_of_parameters(out: Path) -> list[int]:
    """In how many parts each matrix, and each of its moments, stands in the checkpoint."""
    newest = max((out / "checkpoints").iterdir())
    metadata = dcp.FileSystemReader(newest).read_metadata().state_dict_metadata
    return [len(entry.chunks) for entry in metadata.values() if len(entry.size) == 2]


def back_to_step_8(out: Path) -> None:
    shutil.rmtree(out / "checkpoints" / "step-00000012")
    (out / "summary.json").unlink()


def test_a_batch_that_cannot_be_dealt_out_is_refused(tmp_path, monkeypatch):
    from fedllm.pretraining import run as module
    from fedllm.pretraining.parallel import World

    world = World(0, 3, torch.device("cpu"))
    monkeypatch.setattr(World, "wait", lambda self: None)
    with pytest.raises(ConfigError, match="cannot be dealt to 3 processes"):
        module._run(config(tmp_path), tmp_path / "run", module.Observers(), False, world)
