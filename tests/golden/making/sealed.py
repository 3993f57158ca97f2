"""Make what a site keeps sealed: under its own secret, a key, and a passphrase."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from golden.kept import PASSPHRASE, identity, seed

from fedllm.at_rest.keyring import Lock
from fedllm.at_rest.stream import CHUNK_BYTES
from fedllm.at_rest.vault import LOG, Vault
from fedllm.runs.checkpoints import RunState, save_checkpoint

KEY = seed("key at rest")
# Two chunks: a whole one and a short one.
CONTENT = bytes(i % 251 for i in range(CHUNK_BYTES + 100))
LINES = ['{"run": "0123456789abcdef", "round": 1, "loss": 1.5}', '{"error": "DataError"}']
KINDS = [("own/*.sealed", "own layer")]


def checkpoint() -> RunState:
    """Return what a coordinator keeps of a round."""
    adapter = np.array([0.5, -1.25, 3.0], dtype=np.float32)
    return RunState("0123456789abcdef", 2, (0.0, 1.5), "ab" * 32, adapter)


def make(folder: Path) -> None:
    """Write ``sealed``: a folder ``state`` for each way to open one."""
    for name, lock, secret in (
        ("own", None, b""),
        ("key", Lock("key", "env:FEDLLM_GOLDEN_KEY"), KEY),
        ("passphrase", Lock("passphrase", "env:FEDLLM_GOLDEN_PASSPHRASE"), PASSPHRASE),
    ):
        state = folder / "sealed" / name
        vault = Vault.of(state, identity("anne"))
        content = CONTENT if lock is None else CONTENT[:100]
        vault.write(state / "own" / "kept.sealed", "own layer", content)
        if lock is not None:
            (state / LOG).write_text("".join(f"{line}\n" for line in LINES))
            vault.rekey(lock, secret, KINDS)
        if lock is None:
            save_checkpoint(state / "runs" / "bank" / "checkpoints", checkpoint(), vault)
        (state / "keyring.lock").unlink()
