"""A site's own layer can be read by that site alone, for the adapter that it was made on."""

from __future__ import annotations

import numpy as np
import pytest

from fedllm.errors import FedllmError
from fedllm.identity.keys import Identity
from fedllm.personal.own_layer import OwnLayer
from fedllm.personal.sealed import open_own_layer, seal_own_layer

ADAPTER = "ab" * 32


@pytest.fixture
def sealed(tiny_model, tmp_path):
    model, identity = tiny_model(lora={"rank": 0}), Identity.generate("anne")
    change = np.linspace(-1, 1, model.manifest.length, dtype=np.float32)
    path = tmp_path / "layer.sealed"
    seal_own_layer(OwnLayer(change, 4, 0.5), path, identity, model, ADAPTER)
    return model, identity, change, path


def test_what_is_sealed_comes_back(sealed):
    model, identity, change, path = sealed
    found = open_own_layer(path, identity, model, ADAPTER)
    assert np.array_equal(found.change, change)
    assert (found.epochs, found.blend) == (4, 0.5)


def test_nothing_of_it_can_be_read(sealed):
    model, identity, change, path = sealed
    text = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert change.tobytes()[:64] not in text
    assert b"change" not in text
    seal_own_layer(OwnLayer(change, 4, 0.5), path, identity, model, ADAPTER)
    assert path.read_bytes()[30:] != text[30:], "another nonce each time"


@pytest.mark.parametrize("place", [0, 25, 60, -1])
def test_what_was_altered_does_not_open(sealed, place):
    model, identity, _, path = sealed
    text = bytearray(path.read_bytes())
    text[place] ^= 1
    path.write_bytes(text)
    with pytest.raises(FedllmError, match="does not open"):
        open_own_layer(path, identity, model, ADAPTER)


def test_others_and_other_adapters_do_not_open_it(sealed, tiny_model):
    model, identity, _, path = sealed
    with pytest.raises(FedllmError, match="does not open"):
        open_own_layer(path, Identity.generate("anne"), model, ADAPTER)
    with pytest.raises(FedllmError, match="does not open"):
        open_own_layer(path, identity, model, "cd" * 32)
    with pytest.raises(FedllmError, match="does not open"):
        open_own_layer(path, identity, tiny_model(lora={"rank": 2}), ADAPTER)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(FedllmError, match="does not open"):
        open_own_layer(path, identity, model, ADAPTER)
    path.unlink()
    with pytest.raises(FedllmError, match="fedllm client personalise"):
        open_own_layer(path, identity, model, ADAPTER)
