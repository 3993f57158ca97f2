"""Checkpoints of a coordinator that chose keys: sealed, until the run's model is released."""

from __future__ import annotations

from pathlib import Path

from fedllm.at_rest.keyring import Ask
from fedllm.at_rest.sources import ask_at_terminal
from fedllm.at_rest.vault import KEYRING, Vault
from fedllm.errors import ConfigError
from fedllm.identity.keys import Identity
from fedllm.runs.checkpoints import holds_sealed


def vault_of(kit: Path, ask: Ask = ask_at_terminal) -> Vault | None:
    """Open what seals the checkpoints of a coordinator's kit; None where no keys were chosen.

    Raises
    ------
    SealedError, ConfigError
        If the keys do not open, or are gone and checkpoints that they sealed are there.
    """
    state = kit / "state"
    if not (state / KEYRING).exists():
        if holds_sealed(state):
            # Checkpoints in clear would be taken from now on, by whomever they are.
            raise ConfigError(
                f"{state / KEYRING} is gone, without which nothing sealed there opens",
                "restore it from its backup, or remove the sealed checkpoints and begin their runs "
                "anew",
            )
        return None
    return Vault.of(state, Identity.load("coordinator", kit / "keys"), ask)
