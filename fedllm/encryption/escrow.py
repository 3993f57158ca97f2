"""What a survivor leaves with others, so that a sum opens although it goes away.

A site that settles on survivors locks what it would reveal for them under a key, and gives the
key away in shares (Shamir 1979, "How to share a secret"). Its holders' shares are not sent: each
derives its own from what it has in common with the site. What is sent are further points of the
polynomial through the key and these shares, so that fewer of them are enough.
``docs/protocol.md`` says when a holder gives its share, and why that tells nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedllm.canonical import sha256, signing_bytes
from fedllm.errors import ConfigError, PeerError

_PRIME = 2**255 - 19
_POINT_BYTES = 32
_NONCE_BYTES = 12
# More than a site can have neighbours.
_MOST_POINTS = 1 << 14


@dataclass(frozen=True, repr=False)
class Escrow:
    """One site's, for one sum.

    Attributes
    ----------
    points : tuple of int
        The polynomial at holders + 1, holders + 2, ...; at 0 it is the key, at 1, 2, ... the
        holders' shares.
    box : bytes
        What is locked: a nonce of 12 bytes, and AES-256-GCM.
    """

    points: tuple[int, ...]
    box: bytes

    def to_bytes(self) -> bytes:
        """Write the number of points in 2 bytes, 32 for each of them, and the box."""
        points = b"".join(point.to_bytes(_POINT_BYTES, "big") for point in self.points)
        return len(self.points).to_bytes(2, "big") + points + self.box

    @classmethod
    def from_bytes(cls, blob: bytes) -> Escrow:
        """Read what `to_bytes` wrote.

        Raises
        ------
        PeerError
            If it is none.
        """
        count = int.from_bytes(blob[:2], "big")
        end = 2 + count * _POINT_BYTES
        points = tuple(
            int.from_bytes(blob[at : at + _POINT_BYTES], "big")
            for at in range(2, end, _POINT_BYTES)
        )
        fits = 0 < count <= _MOST_POINTS and len(blob) > end + _NONCE_BYTES
        if not fits or not all(point < _PRIME for point in points):
            raise PeerError("a site sent a malformed escrow")
        return cls(points, bytes(blob[end:]))


def lock(secret: bytes, key: bytes, shares: Sequence[bytes], needed: int) -> Escrow:
    """Lock a secret so that some of the holders can open it together.

    Parameters
    ----------
    secret : bytes
        What to lock.
    key : bytes
        32 bytes, of this secret alone.
    shares : sequence of bytes
        32 bytes for each holder, in their order: uniform to whoever knows fewer than ``needed``.
    needed : int
        How many of the shares open it. Who knows fewer learns nothing of the key.

    Raises
    ------
    ConfigError
        If there are fewer holders.
    """
    if not 0 < needed <= len(shares):
        raise ConfigError("an escrow needs as many holders as open it")
    values = [_element(key), *map(_element, shares)]
    places = range(len(values), 2 * len(values) - needed)
    known = dict(enumerate(values))
    points = tuple(_interpolated(known, place) for place in places)
    nonce = os.urandom(_NONCE_BYTES)
    return Escrow(points, nonce + AESGCM(_box_key(values[0])).encrypt(nonce, secret, None))


def unlock(escrow: Escrow, holders: int, shares: Mapping[int, bytes]) -> bytes:
    """Return what was locked.

    Parameters
    ----------
    holders : int
        How many there are.
    shares : mapping of int to bytes
        Of some of them, by their place from 0.

    Raises
    ------
    PeerError
        If the shares are too few, or one of them, or the escrow, is not right.
    """
    first = holders + 1
    known = {first + number: point for number, point in enumerate(escrow.points)}
    for place in sorted(shares)[: max(0, first - len(known))]:
        known[place + 1] = _element(shares[place])
    if len(known) < first:
        raise PeerError(
            f"{len(shares)} of {first - len(escrow.points)} shares are there of what a site left",
            "repeat the round",
        )
    # As many points as fix the polynomial; there may be more.
    known = dict([*known.items()][:first])
    nonce, box = escrow.box[:_NONCE_BYTES], escrow.box[_NONCE_BYTES:]
    try:
        return AESGCM(_box_key(_interpolated(known, 0))).decrypt(nonce, box, None)
    except InvalidTag:
        raise PeerError(
            "what a site left does not open with the shares of it: one of them is not right",
            "repeat the round",
        ) from None


def _element(value: bytes) -> int:
    return int.from_bytes(value, "big") % _PRIME


def _box_key(key: int) -> bytes:
    return sha256(signing_bytes("fedllm.escrow-box.v1", key.to_bytes(_POINT_BYTES, "big")))


def _interpolated(known: Mapping[int, int], at: int) -> int:
    """Evaluate the polynomial of least degree through some points at another place (Lagrange)."""
    whole, total = 1, 0
    for place, (value, weight) in zip(
        known, zip(known.values(), _weights(tuple(known)), strict=True), strict=True
    ):
        whole = whole * (at - place) % _PRIME
        total += value * weight % _PRIME * _inverse(at - place)
    return total * whole % _PRIME


@lru_cache(maxsize=64)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return, for each place, one over the product of its distances from all others."""
    weights = []
    for place in places:
        product = 1
        for other in places:
            product = product * (place - other if other != place else 1) % _PRIME
        weights.append(pow(product, -1, _PRIME))
    return tuple(weights)


@lru_cache(maxsize=1 << 15)
def _inverse(distance: int) -> int:
    return pow(distance, -1, _PRIME)
