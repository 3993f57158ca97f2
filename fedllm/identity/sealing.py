"""Messages for one reader that travel through others: HPKE with a key for one purpose."""

from __future__ import annotations

from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fedllm.errors import PeerError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class SealingKey:
    """A private key that opens what others sealed for it (RFC 9180, base mode).

    Made fresh for one round and never stored: what was sealed for it cannot be opened later,
    by anybody. Base mode does not say who sealed; what is sealed must prove itself.
    """

    def __init__(self) -> None:
        self._key = X25519PrivateKey.generate()

    def __repr__(self) -> str:
        return "SealingKey(<hidden>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a sealing key must not be copied")

    def public_bytes(self) -> bytes:
        """Return the 32 bytes of the public key."""
        return self._key.public_key().public_bytes_raw()

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """Open what `seal_for` sealed for this key.

        Parameters
        ----------
        sealed : bytes
            From a peer.
        about : bytes
            What it must be bound to.

        Raises
        ------
        PeerError
            If it was sealed for another key or purpose, or altered.
        """
        try:
            return _SUITE.decrypt(sealed, self._key, about)
        except (InvalidTag, ValueError):
            raise PeerError(
                "a sealed message does not open with the key of this round",
                "it was altered, or sealed for another round",
            ) from None


def seal_for(public_key: bytes, message: bytes, about: bytes) -> bytes:
    """Encrypt a message so that only the holder of one key can read it.

    Parameters
    ----------
    public_key : bytes
        32 bytes of the reader's X25519 key; the caller has checked whose it is.
    message : bytes
        What to say.
    about : bytes
        Binds the message to its place; the reader must name the same.

    Raises
    ------
    PeerError
        If the key is none.
    """
    try:
        return _SUITE.encrypt(message, X25519PublicKey.from_public_bytes(public_key), about)
    except ValueError:
        raise PeerError("a peer sent a public key for sealed messages that is not valid") from None
