"""Make the kept pretraining run: shards, checkpoints, metrics, and the model of a few steps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from fedllm.files import write_bytes
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.run import run_pretraining
from fedllm.randomness import RandomStream

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "fox")
# The shards' key covers the times of the corpus files.
CORPUS_TIME_S = 1_700_000_000


def pretrain_config() -> PretrainConfig:
    """Return the kept run's configuration; the corpus lies in the working directory."""
    return PretrainConfig.model_validate(
        {
            "name": "kept",
            "data": {"train": "corpus.jsonl", "held_out": 0.2},
            "tokenizer": {"vocabulary": 300},
            "model": {"layers": 1, "width": 8, "heads": 1, "inner": 8},
            "training": {
                "tokens": 6 * 2 * 8,
                "sequence_length": 8,
                "batch_rows": 2,
                "threads": 1,
                "precision": "fp32",
            },
            "report": {"log_every": 1, "evaluate_every": 3, "checkpoint_every": 3},
        }
    )


def make(folder: Path) -> None:
    """Write ``pretraining``."""
    own = folder / "pretraining"
    picks = RandomStream.seeded(0, "kept corpus").below(len(WORDS), 40 * 6).reshape(40, 6)
    texts = [" ".join(WORDS[i] for i in row) + "." for row in picks]
    lines = [json.dumps({"text": text}) + "\n" for text in [*texts, texts[0]]]
    write_bytes(own / "corpus.jsonl", "".join(lines).encode())
    os.utime(own / "corpus.jsonl", (CORPUS_TIME_S, CORPUS_TIME_S))
    with contextlib.chdir(own):
        run_pretraining(pretrain_config(), Path("out"))
    (own / "out" / "model" / "README.md").unlink()
    # Of the two checkpoints the last one shows all; the tokenizer lies in its own folder.
    shutil.rmtree(own / "out" / "checkpoints" / "step-00000003")
    for path in (own / "out" / "model").glob("tokenizer*"):
        path.unlink()
