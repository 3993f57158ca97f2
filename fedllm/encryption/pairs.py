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


class MaskKey:
    """A site's mask key of one run, and what it agreed on with others' keys so far.

    The agreement is the same in all attempts of the run; what masks are made of differs, by the
    salt. Both follow from the site's secret, so that what is kept here is no more of one.

    Parameters
    ----------
    private_key : X25519PrivateKey
        The key.
    """

    def __init__(self, private_key: X25519PrivateKey) -> None:
        self.public = private_key.public_key().public_bytes_raw()
        self._private_key = private_key
        self._agreed: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        return "MaskKey(<hidden>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("what sites share must not be copied")

    def agree(self, peer: bytes) -> bytes:
        """Return the 32 bytes that only the holders of both keys can compute (RFC 7748).

        Raises
        ------
        ValueError
            If the other's key is none, or of small order.
        """
        if peer not in self._agreed:
            other = X25519PublicKey.from_public_bytes(peer)
            self._agreed[peer] = self._private_key.exchange(other)
        return self._agreed[peer]


class PairSecrets:
    """What one site shares with others in one attempt; each is derived once.

    Parameters
    ----------
    scope : MaskScope
        The attempt.
    site : str
        This site's name.
    key : MaskKey
        This site's.
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
        key: MaskKey,
        peer_keys: Mapping[str, bytes],
    ) -> None:
        self._site = site
        self._key = key
        self._peer_keys = dict(peer_keys)
        self._salt = sha256(scope.to_bytes())
        self._derived: dict[str, bytes] = {}
        if len({key.public, *peer_keys.values()}) <= len(peer_keys):
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
                shared = self._key.agree(key)
            except ValueError:
                raise PeerError(f"the mask key of site {peer} is not a valid X25519 key") from None
            first, second = sorted([(self._site, self._key.public), (peer, key)])
            info = signing_bytes("fedllm.masks.v2", *first, *second)
            self._derived[peer] = HKDF(SHA256(), 2 * SEED_BYTES, self._salt, info).derive(shared)
        return self._derived[peer]
