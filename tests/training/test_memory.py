"""The memory of a step is counted without numbers as it is with them."""

import json

import numpy as np
import pytest
import torch
from support.tasks import record
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.config import RunConfig, load_run_config, parse
from fedllm.data.rankings import Ranking
from fedllm.errors import ConfigError
from fedllm.models.live_memory import LiveMemory
from fedllm.privacy.dpsgd import added_up_tensor
from fedllm.tasks import task_of
from fedllm.training.local import gradients_of, watched
from fedllm.training.memory_of_run import memory_of
from fedllm.training.objectives import record_losses

LENGTH = 48


def settings(folder, task, **changes):
    values = {
        "name": "tiny",
        "task": task,
        "model": {
            "path": str(folder),
            "max_length": LENGTH,
            "head_start": "zero",
            "feature_center": "zero",
        },
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2},
        "privacy": {"epsilon": 8.0},
    }
    return parse(RunConfig, values | changes, "test")


def counted(model, private):
    """Count a step of one record of the longest that really runs."""
    ids = torch.full((1, LENGTH), 5)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    if model.task == "classification":
        batch["labels"] = torch.zeros(1, dtype=torch.int64)
    if model.module.stack.has_frozen_part:
        batch["states"] = model.module.prefix(batch)
    with LiveMemory() as memory:
        if private:
            with watched(model, activation_checkpointing=False):
                added_up_tensor(
                    gradients_of(model)(model.trained, lambda: record_losses(model, batch))
                )
        else:
            torch.autograd.grad(record_losses(model, batch).sum(), model.trained)
    return memory.peak_bytes


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize(
    ("kind", "task", "method"),
    [
        ("bert", "classification", "lora"),
        ("llama", "instruction", "lora"),
        ("gpt2", "causal", "lora"),
        ("llama", "causal", "bitfit"),
    ],
)
def test_a_step_without_numbers_takes_what_one_with_numbers_takes(
    kind, task, method, layers, private, tiny_checkpoint
):
    lora = {"rank": 2, "method": method} | ({"last_layers": layers} if layers else {})
    privacy = {"privacy": {"epsilon": 8.0}} if private else {"privacy": {}}
    config = settings(
        tiny_checkpoint(kind), task, lora=lora, training={"microbatch_size": 1}, **privacy
    )
    labels = tuple(f"label {n}" for n in range(100)) if task == "classification" else ()
    model = task_of(task).load_model(config, labels)
    found = memory_of(config, tiny_checkpoint(kind))
    tensors = [*model.module.parameters(), *model.module.buffers()]
    weights = sum({t.data_ptr(): t.nbytes for t in tensors}.values())
    assert found.weights == pytest.approx(weights, rel=0.01)
    states = LENGTH * 16 * 4 if layers else 0
    assert found.kept_a_record == states
    # The estimate's step has the kept states of its record too.
    seen = counted(model, private) + states
    assert found.step == pytest.approx(seen, rel=0.1)
    assert found.training == found.weights + found.step + found.vectors


def test_settings_that_save_memory_are_seen_to(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    whole = memory_of(settings(folder, "causal"), folder)
    cut = memory_of(settings(folder, "causal", training={"activation_checkpointing": True}), folder)
    half = memory_of(
        settings(
            folder,
            "causal",
            model={"path": str(folder), "max_length": LENGTH, "precision": "bfloat16"},
        ),
        folder,
    )
    short = memory_of(
        settings(folder, "causal", model={"path": str(folder), "max_length": LENGTH // 2}), folder
    )
    assert cut.step < 0.8 * whole.step
    assert half.weights < 0.7 * whole.weights
    assert short.step < 0.8 * whole.step


@pytest.mark.parametrize("method", ["lora", "ffa", "core", "fedsvd", "bitfit", "layers"])
def test_vectors_are_of_what_is_trained(method, tiny_checkpoint, tiny_model):
    lora = {"rank": 2, "method": method, "last_layers": 1}
    config = settings(tiny_checkpoint("llama"), "causal", lora=lora)
    found = memory_of(config, tiny_checkpoint("llama"))
    model = task_of("causal").load_model(config, ())
    assert found.vectors == 96 * model.manifest.length


def test_the_command_says_it(tiny_checkpoint, tmp_path):
    folder, run = tiny_checkpoint("llama"), tmp_path / "run.toml"
    run.write_text(
        f'name = "r"\ntask = "causal"\n[model]\npath = "{folder}"\nmax_length = 16\n'
        '[data]\ntrain = "unused.jsonl"\n[lora]\nlast_layers = 1\n'
    )
    said = CliRunner().invoke(app, ["model", "show", str(folder), "--run", str(run)])
    assert said.exit_code == 0, said.output
    assert "GiB: " in said.output
    assert "a record of the longest" in said.output
    said = CliRunner().invoke(app, ["model", "show", str(folder), "--run", str(run), "--json"])
    values = json.loads(said.output)["memory_bytes"]
    assert values["weights"] > 0
    assert values["device"] == "cpu"
    assert values["kept_a_record"] == 16 * 16 * 4


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_with_a_gpu_the_command_says_what_lies_in_its_memory(device, tiny_checkpoint, tmp_path):
    folder, run = tiny_checkpoint("llama"), tmp_path / "run.toml"
    run.write_text(
        f'name = "r"\ntask = "causal"\n[model]\npath = "{folder}"\nmax_length = 16\n'
        f'[data]\ntrain = "unused.jsonl"\n[engine]\ndevice = "{device}"\n'
    )
    found = memory_of(load_run_config(run), folder)
    assert found.on_device == found.weights + found.step
    said = CliRunner().invoke(app, ["model", "show", str(folder), "--run", str(run)])
    assert said.exit_code == 0, said.output
    assert f"GiB of the GPU's memory ({device}): " in " ".join(said.output.split())


def test_encoder_decoders_are_not_estimated(tmp_path):
    from support.tiny_models import save_tiny

    folder = save_tiny("t5", tmp_path / "t5")
    with pytest.raises(ConfigError, match="not estimated"):
        memory_of(settings(folder, "instruction"), folder)


@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_an_event_of_many_answers_takes_what_is_estimated(objective, tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    config = settings(folder, "preference", preference={"objective": objective})
    task, estimated = task_of(config), memory_of(config, folder).step
    model = task.load_model(config)
    words = ["pay", "cash", "lost", "fee", "rate", "open", "close", "loan"]
    # Each as long as may be, and another one than the others.
    answers = tuple(
        " ".join([one, other, *words, *words, *words]) for one in words for other in words[:5]
    )
    event = Ranking("card", "", answers, tuple((n, n + 1) for n in range(len(answers) - 1)))
    dataset = task.encode([record("a:1", **event.written())], model.tokenizer, LENGTH)
    index = np.array([0])
    batch = model.attach(dataset, index, dataset.batch(index))
    assert len(dataset.tokens) > 30 * 28
    with LiveMemory() as memory, watched(model, activation_checkpointing=False):
        added_up_tensor(gradients_of(model)(model.trained, lambda: record_losses(model, batch)))
    assert 0.3 * estimated < memory.peak_bytes <= 1.1 * estimated
