"""What a private step gains and loses where tokens are compared with some words, not with all.

    python benchmarks/sampled_words.py --model DIR --records FILE [--count 24] [--words 16384 32768]

For each number of words (`training.sampled_words`) the gradient of the same records is taken with
and without, record after record in turns, so that a busy machine slows both. FILE has a prompt and
a response in each line (.jsonl). Prints a JSON object for each: ``time_ratio`` is the median over
records of CPU time; ``cosine`` of a record's gradient with the exact one (median), ``mean_cosine``
of the mean of clipped gradients, which is what a step goes along. Preparing, which is done once in
a process, is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from fedllm.config import RunConfig, parse
from fedllm.data.encode import EncodedDataset
from fedllm.data.sources import read_records
from fedllm.models.shared import SharedModel
from fedllm.privacy.dpsgd import forget_step
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training.local import gradients_of, watched
from fedllm.training.objectives import record_losses


def main() -> None:
    """Measure each number of words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--records", required=True, type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--words", type=int, nargs="+", default=[16384, 32768])
    parser.add_argument("--length", type=int, default=192)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, dataset = opened(arguments)
    for words in arguments.words:
        print(json.dumps(compared(model, dataset, words)), flush=True)


def opened(arguments: argparse.Namespace) -> tuple[SharedModel, EncodedDataset]:
    """Return the model with one factor of rank 4 in its last six layers, and records, evenly."""
    values = {
        "name": "sampled-words",
        "task": "instruction",
        "model": {
            "path": arguments.model,
            "max_length": arguments.length,
            "precision": "bfloat16",
        },
        "lora": {"method": "ffa_orthonormal", "rank": 4, "last_layers": 6},
        "data": {
            "train": str(arguments.records.absolute()),
            "prompt": "prompt",
            "response": "response",
        },
    }
    config = parse(RunConfig, values, "benchmark")
    task = task_of(config)
    model = task.load_model(config, ())
    records = read_records(config.data.train, config.data, config.task)
    few = records[:: max(1, len(records) // arguments.count)][: arguments.count]
    return model, task.encode(few, model.tokenizer, arguments.length)


def compared(model: SharedModel, dataset: EncodedDataset, words: int) -> dict[str, float]:
    """Return what gradients of the records take and come to with so many words, and with all."""
    stream = RandomStream.seeded(0, "benchmark")
    started = time.process_time()
    with model.words.drawn(words, stream):
        prepared = time.process_time() - started
    pairs = []
    for index in range(len(dataset)):
        rows = np.array([index])
        batch = model.attach(dataset, rows, model.moved(dataset.batch(rows)))
        both = []
        for count in (None, words):
            with (
                model.words.drawn(count, RandomStream.seeded(1, "draw")),
                watched(model, activation_checkpointing=False),
            ):
                started = time.process_time()
                found = gradients_of(model)(model.trained, lambda b=batch: record_losses(model, b))
                both.append(
                    (torch.cat([g.flatten() for g in found]), time.process_time() - started)
                )
            forget_step(model.module)
        pairs.append(both)
    exact, some = (torch.stack([both[k][0] for both in pairs]).double() for k in range(2))
    likeness = torch.nn.functional.cosine_similarity
    clipped = [values / values.norm(dim=1, keepdim=True).clamp(min=1.0) for values in (exact, some)]
    return {
        "words": words,
        "records": len(pairs),
        "time_ratio": statistics.median(both[1][1] / both[0][1] for both in pairs),
        "exact_seconds": statistics.median(both[0][1] for both in pairs),
        "cosine": float(likeness(exact, some).median()),
        "mean_cosine": float(likeness(clipped[0].mean(0), clipped[1].mean(0), dim=0)),
        "norm_ratio": float((some.norm(dim=1) / exact.norm(dim=1)).median()),
        "prepare_seconds": prepared,
    }


if __name__ == "__main__":
    main()
