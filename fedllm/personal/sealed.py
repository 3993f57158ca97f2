"""A site's own layer at rest: encrypted with a key that follows from the site's identity.

It was trained without noise and may hold records nearly word for word, so its file is as secret as
the records; whoever copies a disk or a backup without the site's keys has nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors.numpy import load, save

from fedllm.errors import FedllmError
from fedllm.files import write_bytes
from fedllm.identity.keys import Identity
from fedllm.models.shared import SharedModel
from fedllm.personal.own_layer import OwnLayer

_MAGIC, _NONCE_BYTES = b"fedllm own layer 1\n", 12
_KEY = "own layer"


def own_layer_path(kit: Path, adapter_sha256: str) -> Path:
    """Return where in a site's kit its own layer for a shared adapter lies."""
    return kit / "state" / "own" / f"{adapter_sha256[:16]}.sealed"


def seal_own_layer(
    layer: OwnLayer, path: Path, identity: Identity, model: SharedModel, adapter_sha256: str
) -> None:
    """Write a layer so that this site alone can read it.

    Parameters
    ----------
    adapter_sha256 : str
        Of the shared adapter that it belongs on.
    """
    nonce = os.urandom(_NONCE_BYTES)
    # How it was chosen tells of the records, too.
    chosen = np.array([layer.epochs, layer.blend])
    plain = save({"change": layer.change, "chosen": chosen})
    sealed = AESGCM(identity.derive(_KEY)).encrypt(nonce, plain, _about(model, adapter_sha256))
    write_bytes(path, _MAGIC + nonce + sealed, mode=0o600)


def open_own_layer(
    path: Path, identity: Identity, model: SharedModel, adapter_sha256: str
) -> OwnLayer:
    """Read what `seal_own_layer` wrote.

    Raises
    ------
    FedllmError
        If it is missing or damaged, another site's, or belongs on another model or adapter.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FedllmError(
            f"{path} cannot be read ({error.strerror})", "make it: fedllm client personalise"
        ) from None
    content = text.removeprefix(_MAGIC)
    nonce, sealed = content[:_NONCE_BYTES], content[_NONCE_BYTES:]
    try:
        if content == text:
            raise InvalidTag
        plain = AESGCM(identity.derive(_KEY)).decrypt(nonce, sealed, _about(model, adapter_sha256))
    except (InvalidTag, ValueError):
        raise FedllmError(
            f"{path} does not open: it is damaged, another site's, or belongs on another adapter",
            "make it anew for this adapter: fedllm client personalise",
        ) from None
    found = load(plain)
    epochs, blend = found["chosen"].tolist()
    return OwnLayer(found["change"], int(epochs), blend)


def _about(model: SharedModel, adapter_sha256: str) -> bytes:
    """Return what a layer is bound to."""
    return "\n".join(
        (_MAGIC.decode(), model.fingerprint, model.manifest.fingerprint, adapter_sha256)
    ).encode()
