"""What it costs to hold the frozen base as integers: memory, time of a private step, loss.

    python benchmarks/quantization.py [--model DIR --records FILE.jsonl] [--quick]

Each case is a process of its own. Memory is the most that is resident (VmHWM) above libraries and
tokenizer, once while the model is loaded and tried, and once in private steps of one record of 192
tokens at a time, rank 8 in all layers; seconds are CPU time of the quickest of three such steps,
and of three runs of the model without gradients. The model is a random Llama of 12 layers of width
1,024 in bfloat16, made on the spot, or the one of ``--model``. With ``--records`` (keys
``question`` and ``answer``) also the mean loss of the answers, of the untrained model. Prints the
table of docs/models.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from memory import LLAMA, forget_peak, make_dataset, random_llama, resident

from fedllm.config import DataSection, RunConfig, parse
from fedllm.mechanisms import LocalSettings
from fedllm.models.checkpoints import checkpoint_folder, load_tokenizer
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training.local import clipped_gradient_sum
from fedllm.training.objectives import record_losses

LENGTH, TURNS = 192, 3
CASES = [
    ("bfloat16", "none"),
    ("bfloat16", "int8"),
    ("bfloat16", "int4"),
    ("float32", "none"),
    ("float32", "int8"),
    ("float32", "int4"),
]
HEADING = (
    "| precision | quantization | weights MiB | loading MiB | steps MiB | step s | run s "
    "| step by the first | loss |"
)
SETTINGS = LocalSettings(
    steps=1,
    sampling_rate=1.0,
    expected_batch_size=1.0,
    microbatch_size=1,
    optimizer="sgd",
    learning_rate=1e-3,
    head_learning_rate=1e-3,
    clipping_norm=1.0,
    noise_multiplier=1.0,
)


def run_of(model: str, precision: str, quantization: str) -> RunConfig:
    """Return a run."""
    base = {"path": model, "max_length": LENGTH}
    values = {
        "name": "quantization",
        "task": "instruction",
        "model": base | {"precision": precision, "quantization": quantization},
        "data": {"train": "random", "prompt": "question", "response": "answer"},
        "lora": {"rank": 8},
        "privacy": {"epsilon": 8.0},
    }
    return parse(RunConfig, values, "benchmark")


def measured(model: str, precision: str, quantization: str, records: str) -> list[float]:
    """Return MiB of weights, loading and steps, seconds of a step and of a run, and the loss."""
    torch.set_num_threads(1)
    config = run_of(model, precision, quantization)
    torch.ones(64, 64, requires_grad=True).matmul(torch.ones(64, 64)).sum().backward()
    tokenizer = load_tokenizer(checkpoint_folder(model))
    bare = resident("VmRSS")
    del tokenizer
    forget_peak()
    shared = task_of(config).load_model(config)
    loading = resident("VmHWM") - bare
    weights = sum(p.nbytes for p in shared.module.parameters())
    data = make_dataset(LENGTH, per_token=True)
    one = data.batch(np.array([0]))
    step = _quickest(
        lambda: clipped_gradient_sum(shared, data, SETTINGS, RandomStream.seeded(1))
    ) / len(data)
    forget_peak()
    clipped_gradient_sum(shared, data, SETTINGS, RandomStream.seeded(1))
    training = resident("VmHWM") - bare
    with torch.no_grad():
        run = _quickest(lambda: record_losses(shared, one))
    sizes = [size / 2**20 for size in (weights, loading, training)]
    return [*sizes, step, run, _loss(shared, config.data, records) if records else np.nan]


def _quickest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(TURNS):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def _loss(model: SharedModel, data: DataSection, records: str) -> float:
    task = task_of("instruction")
    encoded = task.encode(task.read(records, data), model.tokenizer, LENGTH, ())
    with torch.no_grad():
        batches = (encoded.batch(np.array([index])) for index in range(len(encoded)))
        return float(np.mean([float(record_losses(model, batch)) for batch in batches]))


def llama(folder: Path, width: int, layers: int) -> str:
    """Save a random Llama."""
    size = {"hidden_size": width, "intermediate_size": width * 11 // 4, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 64, "vocab_size": 32_000}
    return random_llama(folder, LLAMA | size | heads)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="", help="a decoder's folder")
    parser.add_argument("--records", default="", help="questions and answers, as JSON lines")
    parser.add_argument("--quick", action="store_true", help="a small model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        size = (128, 2) if arguments.quick else (1024, 12)
        model = arguments.model or llama(Path(scratch) / "llama", *size)
        print(HEADING + "\n" + "|---" * 9 + "|")
        plain = 0.0
        for precision, held in CASES:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                found = pool.apply(measured, (model, precision, held, arguments.records))
            weights, loading, training, step, run, loss = found
            plain = plain or step
            print(
                f"| {precision} | {held} | {weights:,.0f} | {loading:,.0f} | {training:,.0f} | "
                f"{step:.2f} | {run:.2f} | {step / plain:.2f} | {loss:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
