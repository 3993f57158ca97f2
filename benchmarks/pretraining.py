"""Tokens per CPU-second of `fedllm pretrain` against a plain training loop.

The peer is a loop as one would write it in an afternoon (`plain_llama.py`): the same
Llama-type shape, the same batch, bf16 autocast, fused AdamW, random rows of one token stream,
no document boundaries. It gets every setting that fedllm gives itself: glibc's allocator told
to keep freed memory, attention by matrix products, heads as wide, threads, compilation. It also
runs with PyTorch's and glibc's defaults, and with each of the two alone, to show what those
settings are worth; a second ratio is to the fastest of the four.

Each runs in processes of its own, all in turn, the order reversed every other turn. Ratios are
medians over the turns of two runs in the same turn. The first steps of each (allocation, and
compilation with --compile) are not timed. The share of the machine's bf16 matrix rate, measured
in the same turns, that the model's arithmetic reaches is printed too.

    python benchmarks/pretraining.py [--width 128] [--layers 4] [--steps 20] [--repeats 3]
                                     [--compile] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedllm.runs.observer import Observer, StepReport

UNTIMED_STEPS = 5
PEER = "plain"
# By name: a label, whether freed memory is kept, and whether attention is matrix products.
PLAIN = {
    PEER: ("plain loop, fedllm's settings", True, True),
    "defaults": ("plain loop, defaults", False, False),
    "memory": ("plain loop, memory kept", True, False),
    "products": ("plain loop, matrix products", False, True),
}
OURS = {"adamw": "fedllm, adamw", "muon": "fedllm, muon"}


class Stopwatch(Observer):
    """An observer that takes the CPU time from the end of the untimed steps."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}

    def advanced(self, report: StepReport) -> None:
        """Take the time."""
        self._times[report.step] = time.process_time()

    @property
    def seconds(self) -> float:
        """CPU-seconds of the timed steps."""
        return max(self._times.values()) - self._times[UNTIMED_STEPS]


def measure_fedllm(options: argparse.Namespace, optimizer: str) -> dict[str, float]:
    """Time the real loop on real shards: packing, masks, checks, metrics."""
    from fedllm.pretraining.architectures import build_model, choose_attention
    from fedllm.pretraining.config import PretrainConfig
    from fedllm.pretraining.loop import TrainingLoop
    from fedllm.pretraining.material import held_out_text, make_objective, make_sampler
    from fedllm.pretraining.memory import keep_freed_memory
    from fedllm.pretraining.parallel import joined_world
    from fedllm.pretraining.shards import tokenise, training_texts
    from fedllm.pretraining.tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory() as name, joined_world() as world:
        folder = Path(name)
        random = np.random.default_rng(0)
        words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnrst"]
        with (folder / "corpus.jsonl").open("w") as stream:
            for _ in range(4000):
                text = " ".join(random.choice(words, size=options.document))
                stream.write(json.dumps({"text": text}) + "\n")
        config = PretrainConfig.model_validate(
            {
                "name": "bench",
                "data": {"train": str(folder / "corpus.jsonl"), "held_out": 0},
                "tokenizer": {"vocabulary": 300},
                "model": {"layers": options.layers, "width": options.width},
                "training": {
                    "tokens": (UNTIMED_STEPS + options.steps) * options.rows * options.length,
                    "sequence_length": options.length,
                    "batch_rows": options.rows,
                    "optimizer": optimizer,
                    "compile": options.compile,
                },
                "report": {"log_every": UNTIMED_STEPS},
            }
        )
        keep_freed_memory()
        tokenizer = train_tokenizer(training_texts(config, 10**6), config.tokenizer, "llama")
        manifest = tokenise(config, tokenizer, folder / "tokens")
        model = build_model(config.model, config.training, tokenizer, 0)
        model.resize_token_embeddings(options.vocabulary)
        choose_attention(model, world.device, options.length)
        stopwatch = Stopwatch()
        loop = TrainingLoop(
            config,
            make_objective(config, model, tokenizer, manifest),
            make_sampler(config, manifest, folder / "tokens"),
            held_out_text(config, manifest, folder / "tokens"),
            tokenizer,
            folder / "run",
            world,
            stopwatch,
        )
        loop.run()
    return {"seconds": stopwatch.seconds, "parameters": model.num_parameters()}


def measure_plain(options: argparse.Namespace, name: str) -> dict[str, float]:
    """Time the afternoon's loop with the settings of one name of `PLAIN`."""
    import torch
    from plain_llama import PlainLlama, plain_step, random_rows

    from fedllm.pretraining.architectures import resolve_shape
    from fedllm.pretraining.config import NetworkSection
    from fedllm.pretraining.memory import keep_freed_memory

    _, kept, products = PLAIN[name]
    if kept:
        keep_freed_memory()
    shape = resolve_shape(NetworkSection(layers=options.layers, width=options.width))
    torch.manual_seed(0)
    model = PlainLlama(
        options.vocabulary, options.layers, options.width, shape.inner, options.length, products
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    stream = torch.randint(300, (1_000_000,))
    run = torch.compile(model) if options.compile else model
    started = 0.0
    for step in range(UNTIMED_STEPS + options.steps):
        if step == UNTIMED_STEPS:
            started = time.process_time()
        plain_step(run, model, optimizer, random_rows(stream, options.rows, options.length))
    seconds = time.process_time() - started
    return {"seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}


def matrix_rate() -> float:
    """Return floating-point operations per CPU-second of a bf16 matrix product."""
    import torch

    left, right = (torch.randn(1024, 1024, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(10):
        started = time.process_time()
        for _ in range(4):
            left @ right
        rates.append(4 * 2 * 1024**3 / (time.process_time() - started))
    return max(rates)


def operations_per_token(options: argparse.Namespace, parameters: float) -> float:
    """Return those of forward and backward: 6 a weight, and attention's (Chowdhery 2022)."""
    return 6 * parameters + 12 * options.layers * options.width * options.length


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--document", type=int, default=120, help="words of a document")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile for both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one turn of a tiny model")
    parser.add_argument("--one", choices=(*PLAIN, *OURS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.layers, options.width, options.vocabulary = 1, 64, 512
        options.length, options.rows, options.steps, options.repeats = 32, 2, 5, 1
    import torch

    torch.set_num_threads(options.threads)
    if options.one:
        plain = options.one in PLAIN
        measured = (measure_plain if plain else measure_fedllm)(options, options.one)
        print(json.dumps(measured))
        return
    print_table(options, *measure_in_turn(options))


def measure_in_turn(
    options: argparse.Namespace,
) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Return tokens a CPU-second in each turn, parameters, and the bf16 matrix rate."""
    tokens = options.steps * options.rows * options.length
    speeds: dict[str, list[float]] = {name: [] for name in (*OURS, *PLAIN)}
    parameters: dict[str, float] = {}
    rate = 0.0
    for turn in range(options.repeats):
        rate = max(rate, matrix_rate())
        for name in list(speeds)[:: -1 if turn % 2 else 1]:
            output = subprocess.run(
                [sys.executable, *sys.argv, "--one", name], check=True, stdout=subprocess.PIPE
            ).stdout
            result = json.loads(output.splitlines()[-1])
            parameters[name] = result["parameters"]
            speeds[name].append(tokens / result["seconds"])
    return speeds, parameters, rate


def print_table(
    options: argparse.Namespace,
    speeds: dict[str, list[float]],
    parameters: dict[str, float],
    rate: float,
) -> None:
    """Print medians, and their ratios to the peer with the same settings."""
    print(f"{parameters['adamw']:,.0f} parameters (plain loop: {parameters[PEER]:,.0f})")
    print(
        f"{options.rows} rows of {options.length} tokens, bf16, {options.threads} thread(s)"
        f"{', compiled' if options.compile else ''}; median of {options.repeats} turn(s)"
    )
    labels = OURS | {name: label for name, (label, *_) in PLAIN.items()}
    fastest = max(PLAIN, key=lambda name: statistics.median(speeds[name]))

    def ratio(values: list[float], peer: str) -> float:
        return statistics.median(a / b for a, b in zip(values, speeds[peer], strict=True))

    for name, values in speeds.items():
        speed = statistics.median(values)
        used = speed * operations_per_token(options, parameters[name]) / rate
        print(
            f"{labels[name]:30} {speed:8,.0f} tokens/CPU-s  ratio {ratio(values, PEER):.2f}, "
            f"{ratio(values, fastest):.2f} to the fastest  "
            f"{used:.1%} of the {rate / 1e9:.0f} GFLOP/s of a bf16 product"
        )
    print(
        "ratios are to the plain loop with the settings that fedllm gives itself, and to the "
        f"fastest: {PLAIN[fastest][0]}"
    )


if __name__ == "__main__":
    main()
