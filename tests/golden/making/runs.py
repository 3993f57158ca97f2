"""Make the kept run folder: a short simulation, without what is written for people's eyes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from golden.making.models import LABELS, WORDS

from fedllm.config import RunConfig, parse
from fedllm.files import write_bytes
from fedllm.randomness import RandomStream
from fedllm.runs.checkpoints import Good, RunState, save_checkpoint
from fedllm.runs.metrics import RoundReport
from fedllm_server.simulation import simulate


def make(folder: Path) -> None:
    """Write ``simulation``; ``folder`` stands in its run.toml. And ``checkpoints``."""
    save_checkpoint(folder / "checkpoints", rolled_back())
    out = folder / "simulation"
    data = folder / "simulation.jsonl"
    stream = RandomStream.seeded(5, "kept run")
    rows = []
    for number in range(24):
        words = [WORDS[int(i)] for i in stream.below(len(WORDS), 4)]
        where = ("anne", "bob")[number % 2]
        who = {"where": where, "who": f"{where}'s person {number // 4}"}
        rows.append({"text": " ".join(words), "label": LABELS[number % 3], **who})
    write_bytes(data, "".join(json.dumps(row) + "\n" for row in rows).encode())
    values: dict[str, Any] = {
        "name": "simulation",
        "task": "classification",
        "model": {"path": str(folder / "model"), "max_length": 16},
        "lora": {"rank": 1},
        "data": {
            "train": str(data),
            "test": str(data),
            "unit": "who",
            "site": "where",
            "labels": LABELS,
        },
        "rounds": {"count": 3, "optimizer": "adam", "learning_rate": 0.01},
        "training": {"local_steps": 1, "batch_size": 4},
        "privacy": {"epsilon": 8.0},
        "engine": {"threads": 1},
    }
    simulate(parse(RunConfig, values, "golden"), out, observers=[])
    for name in ("report.html", "report.json", ".lock"):
        (out / name).unlink(missing_ok=True)
    for path in (out / "ledgers").iterdir():
        if path.name not in ("anne.sqlite", "anne.memory.json"):
            path.unlink()
    shutil.rmtree(out / "identities" / "bob")
    data.unlink()


def rolled_back() -> RunState:
    """Return the state of a run after a round that was rolled back to the one before."""
    adapter = np.array([0.5, -0.25, 0.125], dtype=np.float32)
    optimizer = {
        "steps": np.array([1.0]),
        "mean": np.array([0.5, 0.25, -1.0]),
        "square": np.zeros(3),
    }
    report = RoundReport(
        round=2,
        sites=2,
        metrics={"loss": 9.5},
        rejected={"test": "the loss is 9.5"},
        kept_round=1,
    )
    return RunState(
        "run-1",
        2,
        (0.0, 0.0, 0.0),
        "c" * 64,
        adapter,
        optimizer,
        "f" * 64,
        report,
        ("one", "two"),
        "e" * 64,
        Good(1, 2.25, adapter, optimizer),
    )
