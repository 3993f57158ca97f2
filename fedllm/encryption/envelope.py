"""The envelope of an encrypted vector: what it is, for which round, signed as one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass

from fedllm.canonical import canonical_json, sha256_hex, signing_bytes
from fedllm.encryption.plan import EncryptionPlan
from fedllm.errors import PeerError

_MAGIC, _VERSION = b"FEDLLMv\n", 2
_LABEL = "fedllm.envelope.v2"
# Magic, version, bytes of header and of signature, bytes of payload.
_PREFIX = struct.Struct("<8sHHHQ")
_HEADER_LIMIT, _SIGNATURE_LIMIT = 4096, 256

Verify = Callable[[str, bytes, bytes], None]
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class EnvelopeHeader:
    """What a signature binds to an encrypted vector.

    Attributes
    ----------
    run : str
        Unique name of the run.
    attempt : int
        Number of the attempt.
    site : str
        The sender.
    purpose : str
        What is summed, such as "update" or "evaluation".
    plan : str
        `EncryptionPlan.fingerprint`.
    key : str
        `PublicRoundKey.fingerprint`.
    length : int
        Bytes of the payload.
    sha256 : str
        SHA-256 of the payload, in hex.
    """

    run: str
    attempt: int
    site: str
    purpose: str
    plan: str
    key: str
    length: int
    sha256: str

    def to_bytes(self) -> bytes:
        """Write the header as canonical JSON."""
        return canonical_json(asdict(self))


@dataclass(frozen=True)
class Expectation:
    """What the receiver of a vector knows beforehand; attributes as in `EnvelopeHeader`."""

    run: str
    attempt: int
    site: str
    purpose: str
    key: str
    plan: EncryptionPlan


def sign_envelope(payload: bytes, expectation: Expectation, sign: Sign) -> bytes:
    """Put a vector in a signed envelope.

    Parameters
    ----------
    payload : bytes
        What `PublicRoundKey.encrypt` returned.
    expectation : Expectation
        Round, sender, key and plan.
    sign : callable
        Returns the sender's signature of some bytes.
    """
    text = _header(expectation, len(payload), sha256_hex(payload)).to_bytes()
    signature = sign(signing_bytes(_LABEL, text))
    if len(text) > _HEADER_LIMIT or len(signature) > _SIGNATURE_LIMIT:
        raise ValueError("an envelope's header or signature is too long")
    prefix = _PREFIX.pack(_MAGIC, _VERSION, len(text), len(signature), len(payload))
    return b"".join([prefix, text, signature, payload])


def open_envelope(blob: bytes, expectation: Expectation, verify: Verify) -> bytes:
    """Return the payload of an envelope after everything about it was checked.

    Lengths come first, before anything is read or copied; then the signature; then that the
    header says what the receiver expects; then the payload's digest.

    Parameters
    ----------
    blob : bytes
        From a peer.
    expectation : Expectation
        What it must say.
    verify : callable
        ``verify(site, message, signature)`` raises when the signature is not the site's.

    Raises
    ------
    PeerError
        If the envelope is malformed, or of another round, site, plan or key. What ``verify``
        raises comes through.
    """
    site = expectation.site
    if len(blob) < _PREFIX.size:
        raise _malformed(site)
    magic, version, text_size, signature_size, size = _PREFIX.unpack_from(blob)
    if magic != _MAGIC:
        raise _malformed(site)
    if version != _VERSION:
        raise PeerError(
            f"site {site} sent an envelope of version {version}; this is version {_VERSION}",
            "update fedllm, so that all parties run the same version",
        )
    if text_size > _HEADER_LIMIT or signature_size > _SIGNATURE_LIMIT:
        raise _malformed(site)
    if size != expectation.plan.update_bytes:
        raise PeerError(f"site {site} sent a vector of another length than the plan's")
    if len(blob) != _PREFIX.size + text_size + signature_size + size:
        raise _malformed(site)
    begin = _PREFIX.size + text_size
    text, signature = blob[_PREFIX.size : begin], blob[begin : begin + signature_size]
    verify(site, signing_bytes(_LABEL, text), signature)
    payload = blob[begin + signature_size :]
    expected = _header(expectation, size, sha256_hex(payload))
    if text != expected.to_bytes():
        raise PeerError(
            f"site {site} sent a vector that is not for this round, key and plan, or was damaged"
        )
    return payload


def _header(expectation: Expectation, length: int, digest: str) -> EnvelopeHeader:
    return EnvelopeHeader(
        run=expectation.run,
        attempt=expectation.attempt,
        site=expectation.site,
        purpose=expectation.purpose,
        plan=expectation.plan.fingerprint(),
        key=expectation.key,
        length=length,
        sha256=digest,
    )


def _malformed(site: str) -> PeerError:
    return PeerError(f"site {site} sent bytes that are no envelope of this version")
