"""A party's long-lived keys: Ed25519 to sign, and a secret from which round keys derive."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedllm.canonical import UNREADABLE, signing_bytes
from fedllm.errors import ConfigError, PeerError
from fedllm.files import write_bytes

# Bytes of a statement; an update's envelope is longer, and checked once.
_STATEMENT = 4096


class Identity:
    """One party's private keys; never shown in ``repr`` and never pickled.

    Parameters
    ----------
    name : str
        The party's name in the roster.
    signing_key : Ed25519PrivateKey
        Signs everything that the party sends (RFC 8032).
    secret : bytes
        32 bytes from which keys for single purposes derive (RFC 5869).
    """

    def __init__(self, name: str, signing_key: Ed25519PrivateKey, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError("an identity's secret has 32 bytes")
        self.name = name
        self._signing_key = signing_key
        self._secret = secret

    @classmethod
    def generate(cls, name: str) -> Identity:
        """Make new keys from the operating system's generator."""
        return cls(name, Ed25519PrivateKey.generate(), os.urandom(32))

    @classmethod
    def load(cls, name: str, folder: Path) -> Identity:
        """Read the keys that `save` wrote.

        Raises
        ------
        ConfigError
            If a file is missing or damaged.
        """
        try:
            key = serialization.load_pem_private_key((folder / "signing.pem").read_bytes(), None)
            secret = (folder / "secret.bin").read_bytes()
        except (OSError, *UNREADABLE) as error:
            raise ConfigError(
                f"the keys of '{name}' in {folder} cannot be read ({type(error).__name__})",
                "restore the folder from its backup, or make new keys",
            ) from None
        if not isinstance(key, Ed25519PrivateKey) or len(secret) != 32:
            raise ConfigError(f"the keys of '{name}' in {folder} are damaged", "restore the folder")
        return cls(name, key, secret)

    def save(self, folder: Path) -> None:
        """Write both keys, readable by the owner alone (mode 0600)."""
        pem = self._signing_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(folder / "signing.pem", pem, mode=0o600)
        write_bytes(folder / "secret.bin", self._secret, mode=0o600)

    def public_bytes(self) -> bytes:
        """Return the 32 bytes of the public signing key."""
        return self._signing_key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of ``message``."""
        return self._signing_key.sign(message)

    def derive(self, purpose: str | bytes) -> bytes:
        """Return 32 secret bytes for one purpose; the same purpose gives the same bytes."""
        info = b"fedllm.identity.v1\x1f" + (
            purpose if isinstance(purpose, bytes) else purpose.encode()
        )
        return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(self._secret)

    def mask_key(self, run: str, ledger: str) -> X25519PrivateKey:
        """Return the X25519 key with which this party agrees on masks in one run.

        ``ledger`` is the id of the ledger that this run is charged to (`Ledger.id`).
        """
        secret = self.derive(signing_bytes("fedllm.mask-secret.v3", run, ledger))
        return X25519PrivateKey.from_private_bytes(secret)

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, <hidden>)"

    def __reduce__(self) -> tuple[str, ...]:
        raise TypeError("an Identity must not be copied between processes; load it there")


def verify_signature(public_key: bytes, signature: bytes, message: bytes, who: str) -> None:
    """Check an Ed25519 signature.

    One of a statement that fitted is known: each of a cohort's is shown to every site of it, and a
    process may be a thousand of them.

    Raises
    ------
    PeerError
        If it is not that of ``who`` over exactly ``message``.
    """
    check = _known if len(message) <= _STATEMENT else _verify
    try:
        check(public_key, signature, message)
    except (InvalidSignature, *UNREADABLE):
        raise PeerError(
            f"the signature of '{who}' does not fit what arrived",
            "the message was altered, or the sender does not hold the key in the roster",
        ) from None


def _verify(public_key: bytes, signature: bytes, message: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)


# What does not fit raises, and is never known.
_known = lru_cache(maxsize=1 << 15)(_verify)
