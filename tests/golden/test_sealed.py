"""What a site sealed is opened for ever: its layers, its log, its keys."""

from __future__ import annotations

import numpy as np
import pytest
from golden.kept import PASSPHRASE, V7, identity
from golden.making.sealed import CONTENT, KEY, LINES, checkpoint

from fedllm.at_rest.stream import SealedError
from fedllm.at_rest.vault import DERIVATION, Vault
from fedllm.personal import sealed
from fedllm.runs.checkpoints import load_checkpoint

SEALED = V7 / "sealed"


@pytest.mark.parametrize("name", ["own", "key", "passphrase"])
def test_sealed_files_open_and_so_does_the_log(name, monkeypatch):
    monkeypatch.setenv("FEDLLM_GOLDEN_KEY", KEY.hex())
    monkeypatch.setenv("FEDLLM_GOLDEN_PASSPHRASE", PASSPHRASE.decode())
    vault = Vault.of(SEALED / name, identity("anne"))
    content = CONTENT if name == "own" else CONTENT[:100]
    assert vault.read(SEALED / name / "own" / "kept.sealed", "own layer") == content
    assert list(vault.log_lines()) == ([] if name == "own" else LINES)


def test_another_party_opens_nothing_of_it(monkeypatch):
    monkeypatch.setenv("FEDLLM_GOLDEN_KEY", KEY.hex()[::-1])
    with pytest.raises(SealedError):
        Vault.of(SEALED / "own", identity("bob")).read(
            SEALED / "own" / "own" / "kept.sealed", "own layer"
        )
    with pytest.raises(SealedError):
        Vault.of(SEALED / "key", identity("anne"))


def test_a_partys_own_secret_derives_as_it_did():
    assert (
        identity("anne").derive(DERIVATION).hex()
        == "e183f6d22bd8a0c77ed82e41efa6ba899a30b732d3f6fd9752e2211fbe8e3e58"
    )


def test_a_sealed_checkpoint_is_read():
    state = SEALED / "own"
    found = load_checkpoint(
        state / "runs" / "bank" / "checkpoints", Vault.of(state, identity("anne"))
    )
    known = checkpoint()
    assert (found.run, found.round, found.noise) == (known.run, known.round, known.noise)
    assert np.array_equal(found.adapter, known.adapter)


def test_a_layer_of_before_is_opened(tmp_path, monkeypatch):
    """One box of AES-GCM under a key of the identity; nothing writes it any more."""
    text = (SEALED / "before" / "own" / "layer.sealed").read_bytes()
    monkeypatch.setattr(sealed, "_about", lambda model, sha256: b"what it was bound to")
    path = tmp_path / "state" / "own" / "layer.sealed"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    found = sealed.open_own_layer(path, identity("anne"), None, "")
    assert np.array_equal(found.change, np.array([0.5, -1.25], dtype=np.float32))
    assert (found.epochs, found.blend) == (4, 0.5)
