"""Checkpoints of a coordinator that chose keys: sealed, until the run's model is released."""

from __future__ import annotations

from pathlib import Path

from fedllm.at_rest.keyring import Ask
from fedllm.at_rest.sources import ask_at_terminal
from fedllm.at_rest.vault import KEYRING, Vault
from fedllm.identity.keys import Identity
from fedllm.runs.checkpoints import require_ring


def vault_of(kit: Path, ask: Ask = ask_at_terminal) -> Vault | None:
    """Open what seals the checkpoints of a coordinator's kit; None where no keys were chosen.

    Raises
    ------
    SealedError, ConfigError
        If the keys do not open, or are gone and checkpoints that they sealed are there.
    """
    state = kit / "state"
    require_ring(state)
    if not (state / KEYRING).exists():
        return None
    return Vault.of(state, Identity.load("coordinator", kit / "keys"), ask)
