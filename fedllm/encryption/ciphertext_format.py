"""Take serialised objects of TenSEAL and Microsoft SEAL apart; make them from residues.

Only residues travel between parties. TenSEAL's own bytes are read where they were made, and
every byte that TenSEAL reads was written here, so its parsers never see foreign input: they
trust counts and sizes, and have been crashed by them. The layout is that of TenSEAL 0.3.18
(Microsoft SEAL 4.3), checked against the installed version when a layout is made.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal
import zstandard
from numpy.typing import NDArray

from fedllm.encryption.plan import EncryptionPlan
from fedllm.errors import FedllmError
from fedllm.extras import OFFLINE

# SEALHeader: magic, header size, version major and minor, compression, reserved, total size.
_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC, _VERSION, _PLAIN, _ZSTD = 0xA15E, (4, 3), 0, 2
# Ciphertext: parms_id, NTT flag, polynomials, N, primes, scale, correction factor, then the
# header and the word count of the array of residues.
_CIPHERTEXT = struct.Struct("<32s?QQQdQ16sQ")

_PARAMETERS_FIELD, _PUBLIC_FIELD, _KEY_FIELD = 1, 2, 1
_SIZES_FIELD, _CIPHERTEXT_FIELD, _SCALE_FIELD = 1, 2, 3


def _write_varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read_varint(blob: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = blob[start]
        start += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, start


def _fields(blob: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Walk over a Protocol Buffers message that this process made: number, kind, content."""
    place = 0
    while place < len(blob):
        tag, place = _read_varint(blob, place)
        kind, begin = tag & 7, place
        if kind == 0:
            _, place = _read_varint(blob, place)
        elif kind == 1:
            place += 8
        elif kind == 2:
            size, begin = _read_varint(blob, place)
            place = begin + size
        else:
            raise _unknown_layout()
        yield tag >> 3, kind, blob[begin:place]


def _field(number: int, kind: int, content: bytes) -> bytes:
    size = _write_varint(len(content)) if kind == 2 else b""
    return _write_varint(number << 3 | kind) + size + content


def _unknown_layout() -> FedllmError:
    return FedllmError(
        "this TenSEAL writes ciphertexts in a layout that fedllm does not know",
        f"install the pinned version: pip install tenseal==0.3.18 ({OFFLINE})",
    )


def _library_body(blob: bytes) -> bytes:
    """Return what follows a Microsoft SEAL header, decompressed."""
    magic, size, major, minor, compression, _, total = _HEADER.unpack_from(blob)
    if (magic, size, (major, minor), total) != (_MAGIC, _HEADER.size, _VERSION, len(blob)):
        raise _unknown_layout()
    body = blob[_HEADER.size :]
    if compression == _ZSTD:
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return body


def _library_object(body: bytes) -> bytes:
    total = len(body) + _HEADER.size
    return _HEADER.pack(_MAGIC, _HEADER.size, *_VERSION, _PLAIN, 0, total) + body


@dataclass(frozen=True)
class CiphertextLayout:
    """The fixed parts around the residues of one parameter set.

    Attributes
    ----------
    plan : EncryptionPlan
        The plan that it was made for.
    ciphertext_start, key_start : bytes
        What precedes the residues of a ciphertext and of a public key.
    context_fields : tuple of (int, int, bytes)
        Fields of a serialised context, with the public part's fields in ``public_fields``.
    """

    plan: EncryptionPlan
    ciphertext_start: bytes
    key_start: bytes
    context_fields: tuple[tuple[int, int, bytes], ...]
    public_fields: tuple[tuple[int, int, bytes], ...]

    def key_residues(self, context: Any) -> NDArray[np.uint64]:
        """Return the public key of a TenSEAL context, uint64 (2, primes, N), in NTT form."""
        message = context.serialize(True, False, False, False)
        public = dict((n, c) for n, _, c in _fields(message))[_PUBLIC_FIELD]
        key = dict((n, c) for n, _, c in _fields(public))[_KEY_FIELD]
        primes = len(self.plan.coeff_bits)
        return _residues(_library_body(key), self.key_start, primes, self.plan.poly_degree)

    def public_context(self, residues: NDArray[np.uint64]) -> Any:
        """Make a TenSEAL context with this public key, uint64 (2, primes, N), and no other."""
        key = _library_object(self.key_start + residues.tobytes())
        public = b"".join(
            _field(number, kind, key if number == _KEY_FIELD else content)
            for number, kind, content in self.public_fields
        )
        message = b"".join(
            _field(number, kind, public if number == _PUBLIC_FIELD else content)
            for number, kind, content in self.context_fields
        )
        return tenseal._ts_cpp.TenSEALContext.deserialize(message, 1)

    def ciphertext_residues(self, vector: Any) -> NDArray[np.uint64]:
        """Return the residues of a TenSEAL vector of one ciphertext, uint64 (2, primes, N)."""
        contents = [c for n, _, c in _fields(vector.serialize()) if n == _CIPHERTEXT_FIELD]
        if len(contents) != 1:
            raise _unknown_layout()
        primes = len(self.plan.coeff_bits) - 1
        body = _library_body(contents[0])
        return _residues(body, self.ciphertext_start, primes, self.plan.poly_degree)

    def vector(self, context: Any, residues: NDArray[np.uint64]) -> Any:
        """Make a TenSEAL vector of one full ciphertext from uint64 (2, primes, N)."""
        body = self.ciphertext_start + residues.tobytes()
        size = _write_varint(self.plan.slots_per_ciphertext)
        message = _field(_SIZES_FIELD, 2, size) + _field(
            _CIPHERTEXT_FIELD, 2, _library_object(body)
        )
        if self.plan.scheme == "bfv":
            return tenseal._ts_cpp.BFVVector(context, message)
        scale = struct.pack("<d", 2.0**self.plan.scale_bits)
        return tenseal._ts_cpp.CKKSVector(context, message + _field(_SCALE_FIELD, 1, scale))


def _residues(body: bytes, start: bytes, primes: int, degree: int) -> NDArray[np.uint64]:
    if len(body) != len(start) + 16 * primes * degree or not body.startswith(start):
        raise _unknown_layout()
    residues = np.frombuffer(body, dtype="<u8", offset=len(start))
    return residues.reshape(2, primes, degree).astype(np.uint64)


def new_context(plan: EncryptionPlan) -> Any:
    """Make a TenSEAL context with a fresh key pair for ``plan``.

    TenSEAL takes its random numbers from the operating system (Microsoft SEAL's default generator).
    """
    native = tenseal._ts_cpp
    kind = native.SCHEME_TYPE.BFV if plan.scheme == "bfv" else native.SCHEME_TYPE.CKKS
    context = native.TenSEALContext.new(
        kind,
        plan.poly_degree,
        plan.plain_modulus,
        list(plan.coeff_bits),
        native.ENCRYPTION_TYPE.ASYMMETRIC,
        1,
    )
    if plan.scheme == "ckks":
        context.global_scale = 2.0**plan.scale_bits
    return context


@lru_cache(maxsize=8)
def layout_of(plan: EncryptionPlan) -> CiphertextLayout:
    """Learn the layout for ``plan`` from a key pair made for that purpose and thrown away.

    Raises
    ------
    FedllmError
        If the installed TenSEAL uses other primes or another layout.
    """
    context = new_context(plan)
    message = tuple(_fields(context.serialize(True, False, False, False)))
    parts = {number: content for number, _, content in message}
    public = tuple(_fields(parts[_PUBLIC_FIELD]))
    if not _has_primes(_library_body(parts[_PARAMETERS_FIELD]), plan.key_primes):
        raise _unknown_layout()
    key = _library_body(next(content for number, _, content in public if number == _KEY_FIELD))
    native = tenseal._ts_cpp
    kind = native.BFVVector if plan.scheme == "bfv" else native.CKKSVector
    vector = kind(context, [0] if plan.scheme == "bfv" else [0.0])
    contents = [c for n, _, c in _fields(vector.serialize()) if n == _CIPHERTEXT_FIELD]
    ciphertext = _library_body(contents[0])
    return CiphertextLayout(
        plan=plan,
        ciphertext_start=_checked_start(ciphertext, plan, len(plan.coeff_bits) - 1),
        key_start=_checked_start(key, plan, len(plan.coeff_bits)),
        context_fields=message,
        public_fields=public,
    )


def _has_primes(parameters: bytes, primes: tuple[int, ...]) -> bool:
    # Scheme, N and the number of primes take 17 bytes; each prime is an object of its own.
    first = 17 + _HEADER.size
    step = _HEADER.size + 8
    found = [
        struct.unpack_from("<Q", parameters, first + place * step)[0]
        for place in range(len(primes))
    ]
    return tuple(found) == primes


def _checked_start(body: bytes, plan: EncryptionPlan, primes: int) -> bytes:
    _, _, polynomials, degree, found, _, factor, _, words = _CIPHERTEXT.unpack_from(body)
    expected = (2, plan.poly_degree, primes, 1, 2 * primes * plan.poly_degree)
    if (polynomials, degree, found, factor, words) != expected:
        raise _unknown_layout()
    return body[: _CIPHERTEXT.size]
