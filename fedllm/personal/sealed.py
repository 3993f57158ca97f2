"""A site's own layer at rest: sealed with the keys of the site's kit.

It was trained without noise and may hold records nearly word for word, so its file is as secret as
the records; whoever copies a disk or a backup without the site's keys has nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors.numpy import load, save

from fedllm.at_rest.stream import SealedError
from fedllm.at_rest.vault import Vault
from fedllm.canonical import UNREADABLE
from fedllm.errors import FedllmError
from fedllm.identity.keys import Identity
from fedllm.models.shared import SharedModel
from fedllm.personal.own_layer import OwnLayer

PURPOSE, FILES = "own layer", "own/*.sealed"
# Files of before: one box, under a key that derives from the site's identity.
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
    path : Path
        In the folder ``state/own`` of the site's kit.
    adapter_sha256 : str
        Of the shared adapter that it belongs on.
    """
    # How it was chosen tells of the records, too.
    chosen = np.array([layer.epochs, layer.blend])
    belongs = np.frombuffer(_about(model, adapter_sha256), dtype=np.uint8)
    plain = save({"change": layer.change, "chosen": chosen, "belongs": belongs})
    _vault(path, identity).write(path, PURPOSE, plain)


def open_own_layer(
    path: Path, identity: Identity, model: SharedModel, adapter_sha256: str
) -> OwnLayer:
    """Read what `seal_own_layer` wrote.

    Raises
    ------
    FedllmError
        If it is missing or damaged, another site's, or belongs on another model or adapter; or
        the keys of the site's files do not open.
    """
    vault, about = _vault(path, identity), _about(model, adapter_sha256)
    try:
        with path.open("rb") as stream:
            earlier = stream.read(len(_MAGIC)) == _MAGIC
        if earlier:
            found = load(_opened_earlier(path.read_bytes(), identity, about))
        else:
            found = load(vault.read(path, PURPOSE))
            if found["belongs"].tobytes() != about:
                raise ValueError("another adapter's")
        epochs, blend = found["chosen"].tolist()
        return OwnLayer(found["change"], int(epochs), blend)
    except OSError as error:
        raise FedllmError(
            f"{path} cannot be read ({error.strerror})", "make it: fedllm client personalise"
        ) from None
    except (SealedError, InvalidTag, *UNREADABLE):
        raise FedllmError(
            f"{path} does not open: it is damaged, another site's, or belongs on another adapter",
            "make it anew for this adapter: fedllm client personalise",
        ) from None


def _vault(path: Path, identity: Identity) -> Vault:
    return Vault.of(path.parent.parent, identity)


def _opened_earlier(text: bytes, identity: Identity, about: bytes) -> bytes:
    content = text.removeprefix(_MAGIC)
    nonce, sealed = content[:_NONCE_BYTES], content[_NONCE_BYTES:]
    return AESGCM(identity.derive(_KEY)).decrypt(nonce, sealed, about)


def _about(model: SharedModel, adapter_sha256: str) -> bytes:
    """Return what a layer is bound to."""
    return "\n".join(
        (_MAGIC.decode(), model.fingerprint, model.manifest.fingerprint, adapter_sha256)
    ).encode()
