"""What a site agrees on with each other one, from their mask keys: a seed and a share's key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedllm.canonical import sha256, signing_bytes
from fedllm.encryption.survivors import MaskScope
from fedllm.errors import PeerError

SEED_BYTES = 32


class PairSecrets:
    """What one site shares with others in one attempt; each is derived once.

    Parameters
    ----------
    scope : MaskScope
        The attempt.
    site : str
        This site's name.
    private_key : X25519PrivateKey
        This site's mask key.
    peer_keys : mapping of str to bytes
        Raw X25519 public keys of the others.

    Raises
    ------
    PeerError
        If two of the keys are the same.
    """

    def __init__(
        self,
        scope: MaskScope,
        site: str,
        private_key: X25519PrivateKey,
        peer_keys: Mapping[str, bytes],
    ) -> None:
        self._site = site
        self._private_key = private_key
        self._peer_keys = dict(peer_keys)
        self._public_key = private_key.public_key().public_bytes_raw()
        self._salt = sha256(scope.to_bytes())
        self._derived: dict[str, bytes] = {}
        if len({self._public_key, *peer_keys.values()}) <= len(peer_keys):
            raise PeerError("two sites of the cohort have the same mask key")

    def __repr__(self) -> str:
        return f"PairSecrets({self._site})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("what sites share must not be copied")

    def seed(self, peer: str) -> bytes:
        """Return the 32 bytes of the mask that this site shares with another.

        Raises
        ------
        PeerError
            If the other's key is of small order.
        """
        return self._secrets(peer)[:SEED_BYTES]

    def share_key(self, peer: str) -> bytes:
        """Return the 32 bytes of which each derives its shares of the other's escrow.

        Raises
        ------
        PeerError
            If the other's key is of small order.
        """
        return self._secrets(peer)[SEED_BYTES:]

    def _secrets(self, peer: str) -> bytes:
        if peer not in self._derived:
            key = self._peer_keys[peer]
            try:
                shared = self._private_key.exchange(X25519PublicKey.from_public_bytes(key))
            except ValueError:
                raise PeerError(f"the mask key of site {peer} is not a valid X25519 key") from None
            first, second = sorted([(self._site, self._public_key), (peer, key)])
            info = signing_bytes("fedllm.masks.v2", *first, *second)
            self._derived[peer] = HKDF(SHA256(), 2 * SEED_BYTES, self._salt, info).derive(shared)
        return self._derived[peer]
