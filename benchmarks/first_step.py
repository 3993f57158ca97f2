"""How much one noised step gains, by what an adapter's frozen part is made of.

    python benchmarks/first_step.py --model DIR --records FILE --held FILE --texts FILE
    python benchmarks/first_step.py --quick

For each method the mean of the same records' gradients, each scaled to length one, gets the noise
of a step of so many records; along it, along its signs (which is how Adam's first step goes), and
along all directions of each matrix alike (Muon's), steps of several lengths are tried, and the
best change of the loss on `--held` is printed, in nats a token, with its ratio to the first
method's. Lengths are such that the slope promises `PROMISED` nats, so that no method has a better
grid. FILEs have a prompt and a response in each
line (.jsonl), `--texts` a column ``text``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoders import encoded, gradient, loaded, made_up

from fedllm.adapters import adapter_of
from fedllm.randomness import RandomStream
from fedllm.training.evaluate import evaluate
from fedllm.training.muon import orthogonal

MODULES = ["v_proj", "o_proj", "down_proj"]
METHODS: tuple[tuple[str, int, bool], ...] = (
    ("ffa_orthonormal", 4, False),
    ("core", 48, False),
    ("core", 48, True),
    ("core", 192, True),
)
PROMISED = (0.06, 0.12, 0.24, 0.48)


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    for name in ("records", "held", "texts"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--held-count", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1024, help="records of a step with that noise")
    parser.add_argument("--noise-multiplier", type=float, default=0.6)
    parser.add_argument("--quick", action="store_true", help="a small random model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            found = made_up(Path(folder))
            arguments.model, arguments.records, arguments.texts = found
            arguments.held = arguments.records
        elif not all(vars(arguments)[name] for name in ("model", "records", "held", "texts")):
            parser.error("give --model, --records, --held and --texts, or --quick")
        first = None
        for method, usual, public in METHODS:
            rank = min(usual, 8) if arguments.quick else usual
            gained = changes(arguments, method, rank, public)
            first = first or gained
            words = [
                f"along {way} {gain:+.4f} (ratio {gain / first[way]:.2f})"
                for way, gain in gained.items()
            ]
            named = f"{method}{' of public texts' if public else ''}, rank {rank}"
            print(f"{named}: {', '.join(words)}", flush=True)


def changes(
    arguments: argparse.Namespace, method: str, rank: int, public: bool
) -> dict[str, float]:
    """Return the best change of the loss by one step of a method, for each way."""
    lora: dict[str, Any] = {"method": method, "rank": rank, "alpha": rank}
    if public:
        lora["public_texts"] = str(arguments.texts.absolute())
    lora["target_modules"] = MODULES
    config, model = loaded(arguments.model, arguments.records, lora)
    placed = adapter_of(model)
    placed.place(placed.start())
    data = encoded(config, model, arguments.records, arguments.count)
    held = encoded(config, model, arguments.held, arguments.held_count)
    gradients = [gradient(model, data, index).numpy() for index in range(len(data))]
    lengths = [float(np.linalg.norm(found)) for found in gradients]
    mean = np.mean([g / max(n, 1e-12) for g, n in zip(gradients, lengths, strict=True)], axis=0)
    noise = RandomStream.seeded(0, "noise").normal(len(mean))
    noised = mean + noise * arguments.noise_multiplier / arguments.batch
    before = evaluate(model, held)["loss"]
    best = {}
    ends = np.cumsum([segment.size for segment in placed.up.segments])[:-1]
    tensors = zip(np.split(noised, ends), placed.up.segments, strict=True)
    alike = [orthogonal(part.reshape(segment.shape)).ravel() for part, segment in tensors]
    ways = {"gradient": noised, "signs": np.sign(noised), "directions": np.concatenate(alike)}
    for name, way in ways.items():
        slope = float(mean @ way) * statistics.median(lengths)
        losses = []
        for promised in PROMISED:
            model.set_adapter(-promised / slope * way)
            losses.append(evaluate(model, held)["loss"])
        best[name] = min(losses) - before
    return best


if __name__ == "__main__":
    main()
