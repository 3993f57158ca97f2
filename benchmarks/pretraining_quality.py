"""Bits per byte of `fedllm pretrain` against a plain training loop after equal CPU time.

First the run that the configuration file describes. Then the peer (`plain_llama.py`) on the
same tokens, with a model of the same shape, for as many CPU-seconds: AdamW as nanoGPT sets it
(betas .9 and .95, weight decay .1 on matrices, 2 % warm-up, cosine to a tenth), the best of
the given learning rates. It gets the settings that fedllm gives itself: glibc's allocator told to
keep freed memory, attention by matrix products on the same lengths of rows, one thread,
compilation. Both predict every token of the same held-out text once. The peer's
CPU-seconds leave out evaluation, those of `fedllm` count its evaluations on the way.

    python benchmarks/pretraining_quality.py [RUN.toml] [--set KEY=VALUE ...] [--out FOLDER]
                                             [--learning-rates 1e-3 3e-3] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

# Rows up to which fedllm takes attention by matrix products on CPUs.
LONGEST_PRODUCTS = 1024
QUICK = """
name = "quick"
data = { train = "corpus.jsonl", held_out = 0.1 }
tokenizer = { vocabulary = 300 }
model = { layers = 1, width = 64 }
training = { tokens = 8192, sequence_length = 64, batch_rows = 8 }
"""
DEFAULT = Path(__file__).parents[1] / "examples" / "pretraining" / "english.toml"


def run_fedllm(options: argparse.Namespace, out: Path) -> dict[str, float]:
    """Pretrain as the file says, on one thread; return CPU-seconds, tokens and measures."""
    overrides = [
        part for value in ["training.threads=1", *options.set] for part in ("--set", value)
    ]
    command = [sys.executable, "-m", "fedllm", "pretrain", options.run, "--out", out, "--resume"]
    subprocess.run([*map(str, command), *overrides], check=True, stdout=sys.stderr)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last: dict[str, float] = json.loads(lines[-1])
    return last


def run_plain(out: Path, learning_rate: float, cpu_seconds: float) -> dict[str, float]:
    """Train the peer on the tokens of the run in ``out``; return tokens and measures."""
    import torch
    from plain_llama import PlainLlama, plain_step, random_rows

    from fedllm.config import parse, read_toml
    from fedllm.pretraining.architectures import resolve_shape
    from fedllm.pretraining.config import PretrainConfig
    from fedllm.pretraining.manifest import load_manifest, open_shards
    from fedllm.pretraining.material import held_out_text
    from fedllm.pretraining.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = parse(PretrainConfig, read_toml(out / "run.toml"), str(out / "run.toml"))
    manifest = load_manifest(out / "tokens")
    parts = [
        shard
        for source in manifest.sources
        for shard in open_shards(out / "tokens", source, manifest.dtype)
    ]
    stream = torch.from_numpy(np.concatenate(parts).astype(np.int64))
    vocabulary = json.loads((out / "summary.json").read_text())["tokenizer"]["vocabulary"]
    shape, training = resolve_shape(config.model), config.training
    length, rows = training.sequence_length, training.batch_rows
    products = length <= LONGEST_PRODUCTS
    model = PlainLlama(vocabulary, shape.layers, shape.width, shape.inner, length, products)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    scales = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    run = torch.compile(model) if training.compile else model
    started, steps = time.process_time(), 0
    while (used := (time.process_time() - started) / cpu_seconds) < 1:
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * used))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(used / 0.02, cosine)
        loss = plain_step(run, model, optimizer, random_rows(stream, rows, length))
        steps += 1
        if steps % 500 == 0:
            print(f"plain loop: {used:.0%}, loss {float(loss):.3f}", file=sys.stderr, flush=True)
    held_out = held_out_text(config, manifest, out / "tokens")
    nats = {name: summed_loss(model, rows) for name, rows in held_out.pieces.items()}
    bits = {f"bits_per_byte/{n}": v / math.log(2) / held_out.text_bytes[n] for n, v in nats.items()}
    whole = sum(nats.values()) / math.log(2) / sum(held_out.text_bytes.values())
    return {"tokens": steps * rows * length, "bits_per_byte": whole, **bits}


def summed_loss(model: nn.Module, pieces: list[NDArray[np.int64]]) -> float:
    """Return the summed loss (nats) of every token but each row's first."""
    import torch
    import torch.nn.functional as F

    total = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for piece in pieces:
            ids = torch.from_numpy(piece)[None]
            logits = model(ids[:, :-1]).float()
            total += float(F.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
    return total


def write_quick_run(folder: Path) -> Path:
    """Write a made-up corpus and a configuration that trains on it for seconds."""
    random = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfg" for b in "aeiou" for c in "lmn"]
    texts = [" ".join(random.choice(words, size=60)) for _ in range(400)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "run.toml").write_text(QUICK)
    return folder / "run.toml"


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="run folder to make, or to go on with")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--quick", action="store_true", help="few tokens of a tiny model")
    parser.add_argument("--one", type=float, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_plain(options.out, *options.one)))
        return
    if options.quick:
        options.learning_rates = options.learning_rates[:1]
    with tempfile.TemporaryDirectory() as temporary:
        if options.quick:
            options.run = write_quick_run(Path(temporary))
        out = options.out or Path(temporary) / "run"
        ours = run_fedllm(options, out)
        peers = {}
        for rate in options.learning_rates:
            numbers = [str(rate), str(ours["cpu_seconds"])]
            output = subprocess.run(
                [sys.executable, __file__, "--out", str(out), "--one", *numbers],
                check=True,
                stdout=subprocess.PIPE,
            ).stdout
            peers[rate] = json.loads(output.splitlines()[-1])
    best = min(peers.values(), key=lambda peer: peer["bits_per_byte"])
    print(f"{ours['cpu_seconds']:,.0f} CPU-seconds each, one thread; bits per byte")
    names = sorted(n for n in best if n.startswith("bits_per_byte") and n in ours)
    texts = {name: name.partition("/")[2] or "all" for name in names}
    print(f"{'':22} {'tokens':>12}  " + "  ".join(f"{text:>8}" for text in texts.values()))
    rows = {"fedllm": ours} | {f"plain loop, {rate:g}": peer for rate, peer in peers.items()}
    for label, row in rows.items():
        figures = "  ".join(f"{row[n]:{max(8, len(texts[n]))}.4f}" for n in names)
        print(f"{label:22} {row['tokens']:12,.0f}  {figures}")
    print(f"ratio to the best plain loop {ours['bits_per_byte'] / best['bits_per_byte']:.3f}")


if __name__ == "__main__":
    main()
