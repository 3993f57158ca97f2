"""Make the kept run folder: a short simulation, without what is written for people's eyes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from golden.making.models import LABELS, WORDS

from fedllm.config import RunConfig, parse
from fedllm.files import write_bytes
from fedllm.randomness import RandomStream
from fedllm_server.simulation import simulate


def make(folder: Path) -> None:
    """Write ``simulation``; ``folder`` stands in its run.toml."""
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
