"""A decoder with an adapter in its last layers, records to take gradients of, and small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import random_llama
from torch import Tensor

from fedllm.config import RunConfig, parse
from fedllm.data.encode import EncodedDataset
from fedllm.data.sources import read_records
from fedllm.models.shared import SharedModel
from fedllm.privacy.dpsgd import forget_step
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.tasks.beginning import begin
from fedllm.training.local import gradients_of, watched
from fedllm.training.objectives import record_losses

LENGTH = 192


def loaded(model: str, records: Path, lora: dict[str, Any]) -> tuple[RunConfig, SharedModel]:
    """Return the run and its model, where a run would begin."""
    values = {
        "name": "benchmark",
        "task": "instruction",
        "model": {"path": model, "max_length": LENGTH, "precision": "bfloat16"},
        "lora": {"last_layers": 6, **lora},
        "data": {"train": str(records.absolute()), "prompt": "prompt", "response": "response"},
    }
    config = parse(RunConfig, values, "benchmark")
    shared = task_of(config).load_model(config, ())
    begin(config, shared)
    return config, shared


def encoded(config: RunConfig, model: SharedModel, records: Path, count: int) -> EncodedDataset:
    """Return so many records of a file, evenly."""
    rows = read_records(str(records), config.data, config.task)
    few = rows[:: max(1, len(rows) // count)][:count]
    return task_of(config).encode(few, model.tokenizer, LENGTH)


def gradient(
    model: SharedModel, data: EncodedDataset, index: int, words: int | None = None
) -> Tensor:
    """Return one record's gradient (P,), float64."""
    rows = np.array([index])
    batch = model.attach(data, rows, model.moved(data.batch(rows)))
    with (
        model.words.drawn(words, RandomStream.seeded(1, "draw")),
        watched(model, activation_checkpointing=False),
    ):
        found = gradients_of(model)(model.trained, lambda: record_losses(model, batch))
    forget_step(model.module)
    return torch.cat([part.flatten() for part in found]).double()


def made_up(folder: Path) -> tuple[str, Path, Path]:
    """Save a small random Llama, its records and public texts; returns where they are."""
    size = {"hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 96}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 256, "vocab_size": 32_000}
    model = random_llama(folder / "model", {**size, **heads, "tie_word_embeddings": True})
    stream = RandomStream.seeded(0, "made up")

    def text() -> str:
        return f"w{int(stream.below(32_000, 1)[0])}"

    records, texts = folder / "records.jsonl", folder / "texts.jsonl"
    lines = [json.dumps({"prompt": text(), "response": text()}) for _ in range(8)]
    records.write_text("\n".join(lines) + "\n")
    texts.write_text("\n".join(json.dumps({"text": text()}) for _ in range(8)) + "\n")
    return model, records, texts
