"""Seal a stream of bytes of any length: AES-256-GCM in chunks, none of which can go elsewhere.

The STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015): each chunk is encrypted under a
nonce of its number and of whether it is the last, so that chunks cannot be left out, repeated,
swapped, added or cut off at the end. Each file has a key of its own, which derives (HKDF, RFC 5869)
from the owner's key, 32 random bytes of the file, and what the file is for and how it is called: a
renamed file, or one in another's place, does not open. AES-GCM alone would let somebody make a file
that opens under two keys; so the header holds 32 bytes that derive beside the file's key, which
commit to it.

What is read was checked; that it is all of it is known at its end alone.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedllm.canonical import signing_bytes
from fedllm.errors import StorageError

MAGIC = b"fedllm sealed 1\n"
KEY_BYTES = 32
CHUNK_BYTES = 64 << 10
_LABEL = "fedllm.sealed.v1"
_SALT_BYTES, _COMMITMENT_BYTES, _TAG_BYTES, _NUMBER_BYTES = 32, 32, 16, 11
HEADER_BYTES = len(MAGIC) + _SALT_BYTES + _COMMITMENT_BYTES


class SealedError(StorageError):
    """A sealed file does not open; whether by its key, its place or its content is not said."""


@dataclass(frozen=True)
class About:
    """What a sealed file is bound to.

    Attributes
    ----------
    purpose : str
        What it is for, such as "own layer".
    name : str
        How it is called, from its owner's folder on, such as "own/3af0.sealed".
    """

    purpose: str
    name: str

    def does_not_open(self) -> SealedError:
        """Return the one error for a wrong key, and for whatever was done to the file."""
        return SealedError(
            f"{self.name} does not open: it was changed, exchanged, renamed or cut, or was sealed "
            "with another key",
            "restore it from a backup, and see that the key is the one it was sealed with",
        )


def seal(chunks: Iterable[bytes], key: bytes, about: About) -> Iterator[bytes]:
    """Yield the parts of a sealed stream, one after the other.

    Parameters
    ----------
    chunks : iterable of bytes
        What to seal, in parts of any length.
    key : bytes
        The owner's, 32 bytes.
    """
    salt = os.urandom(_SALT_BYTES)
    cipher, commitment = _derived(key, salt, about)
    yield MAGIC + salt + commitment
    number, held = 0, b""
    for chunk in _cut(chunks):
        # The last chunk is known by what does not follow it.
        if number or held:
            yield cipher.encrypt(_nonce(number - 1, last=False), held, None)
        number, held = number + 1, chunk
    yield cipher.encrypt(_nonce(max(0, number - 1), last=True), held, None)


def unseal(stream: BinaryIO, keys: Sequence[bytes], about: About) -> Iterator[bytes]:
    """Yield what was sealed, chunk by chunk; each was checked, the whole when the last one was.

    Parameters
    ----------
    stream : BinaryIO
        At its beginning; read to its end. It gives as much as it is asked for, but at its end.
    keys : sequence of bytes
        The owner's; any of them may be the one.

    Raises
    ------
    SealedError
        If it does not open, wherever that shows. What came before must then not be used.
    """
    cipher = _cipher_of(stream.read(HEADER_BYTES), keys, about)
    number, chunk = 0, stream.read(CHUNK_BYTES + _TAG_BYTES)
    while True:
        following = stream.read(CHUNK_BYTES + _TAG_BYTES)
        try:
            opened = cipher.decrypt(_nonce(number, last=not following), chunk, None)
        except InvalidTag:
            raise about.does_not_open() from None
        yield opened
        if not following:
            return
        number, chunk = number + 1, following


def is_sealed_with(stream: BinaryIO, key: bytes, about: About) -> bool:
    """Tell whether a stream names one key as its own; leaves it at its beginning."""
    header = stream.read(HEADER_BYTES)
    stream.seek(0)
    try:
        _cipher_of(header, [key], about)
    except SealedError:
        return False
    return True


def seal_bytes(content: bytes, key: bytes, about: About) -> bytes:
    """Return a few bytes sealed; see `seal`."""
    return b"".join(seal([content], key, about))


def unseal_bytes(sealed: bytes, keys: Sequence[bytes], about: About) -> bytes:
    """Return what `seal_bytes` sealed; see `unseal`."""
    return b"".join(unseal(BytesIO(sealed), keys, about))


def _cut(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in chunks that are full, but for the last one."""
    held = bytearray()
    for part in parts:
        held += part
        whole = len(held) - len(held) % CHUNK_BYTES
        for start in range(0, whole, CHUNK_BYTES):
            yield bytes(held[start : start + CHUNK_BYTES])
        del held[:whole]
    if held:
        yield bytes(held)


def _cipher_of(header: bytes, keys: Sequence[bytes], about: About) -> AESGCM:
    salt, told = header[len(MAGIC) : -_COMMITMENT_BYTES], header[-_COMMITMENT_BYTES:]
    if len(header) == HEADER_BYTES and header.startswith(MAGIC):
        for key in keys:
            cipher, commitment = _derived(key, salt, about)
            if hmac.compare_digest(commitment, told):
                return cipher
    raise about.does_not_open()


def _derived(key: bytes, salt: bytes, about: About) -> tuple[AESGCM, bytes]:
    if len(key) != KEY_BYTES:
        raise ValueError("a key at rest has 32 bytes")
    info = signing_bytes(_LABEL, about.purpose, about.name)
    found = HKDF(hashes.SHA256(), KEY_BYTES + _COMMITMENT_BYTES, salt, info).derive(key)
    return AESGCM(found[:KEY_BYTES]), found[KEY_BYTES:]


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big") + bytes([last])
