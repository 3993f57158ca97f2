"""The ledger's entries: one canonical form, chained by SHA-256, signed with Ed25519 (RFC 8032).

An entry's content names its place, its site and the hash of the entry before it; its hash
covers the content, its signature the hash. So nothing can be edited, left out, moved or
added without the site's key, and only a cut at the end needs a head kept elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedllm import clock
from fedllm.canonical import UNREADABLE, canonical_json, from_hex, read_object, reading, sha256
from fedllm.errors import ConfigError, PeerError, RefusedError, StorageError

FORMAT = 1
NO_PREVIOUS = "0" * 64
_HASH_LABEL = b"fedllm.ledger.entry.v1\n"
_SIGNATURE_LABEL = b"fedllm.ledger.signature.v1\n"
_FIELDS = {"format", "kind", "sequence", "previous", "site", "time", "body"}


class LedgerError(StorageError):
    """A ledger cannot be read or written, so nothing may be spent."""


class NoLedgerError(LedgerError, ConfigError):
    """A path leads to nothing, or to something that never was a ledger."""


class LedgerRefusal(RefusedError):
    """The ledger does not accept this site, key or entry."""


class TamperedError(PeerError):
    """A ledger was changed, cut, exchanged or damaged after it was written."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(
            message,
            remedy
            or "spend nothing more on this data; restore a copy that matches the anchored head",
        )


class Signer(Protocol):
    """The site's Ed25519 key, as the ledger needs it."""

    def public_bytes(self) -> bytes:
        """Return the raw public key, 32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature of ``message``, 64 bytes."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a ledger: whoever keeps it can tell when entries are cut off.

    Attributes
    ----------
    sequence : int
        Number of the entry, from 1.
    hash : str
        SHA-256 of the entry, 64 hex digits; it covers everything before it.
    signature : str
        The site's signature of the hash, in hex; empty where it is not known.
    """

    sequence: int
    hash: str
    signature: str = ""

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``SEQUENCE:HASH``.

        Raises
        ------
        ConfigError
            If the text has another form.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", text.strip())
        if not match:
            raise ConfigError("the anchor is not SEQUENCE:HASH", "e.g. --anchor 12:3af0… (64 hex)")
        return cls(int(match[1]), match[2])


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    Attributes
    ----------
    content : dict
        "format", "kind", "sequence", "previous", "site", "time" (UTC, informal) and "body".
    hash, signature : bytes
        32 and 64 bytes.
    """

    content: dict[str, Any]
    hash: bytes
    signature: bytes

    @property
    def sequence(self) -> int:
        """Place in the ledger, from 1."""
        return int(self.content["sequence"])

    @property
    def kind(self) -> str:
        """One of "open", "reserve", "commit", "carry"; "dataset" in ledgers of before."""
        return str(self.content["kind"])

    @property
    def body(self) -> dict[str, Any]:
        """What the entry says."""
        return dict(self.content["body"])

    @property
    def head(self) -> Head:
        """The entry as the end of a ledger."""
        return Head(self.sequence, self.hash.hex(), self.signature.hex())


def entry_hash(content: dict[str, Any]) -> bytes:
    """Return SHA-256 over an entry's canonical content."""
    return sha256(_HASH_LABEL + canonical_json(content))


def make_entry(
    signer: Signer, site: str, previous: Head | None, kind: str, body: dict[str, Any]
) -> Entry:
    """Build and sign the entry that follows ``previous``.

    Raises
    ------
    LedgerRefusal
        If the signer's signature does not verify: such an entry must never be stored.
    """
    content = {
        "format": FORMAT,
        "kind": kind,
        "sequence": previous.sequence + 1 if previous else 1,
        "previous": previous.hash if previous else NO_PREVIOUS,
        "site": site,
        # No finer: between two entries stands how long records took to compute.
        "time": clock.utc_minute(),
        "body": body,
    }
    digest = entry_hash(content)
    signature = signer.sign(_SIGNATURE_LABEL + digest)
    if not signature_holds(signer.public_bytes(), digest, signature):
        raise LedgerRefusal("the site's key made a wrong signature", "check the site's key files")
    return Entry(read_object(canonical_json(content)), digest, signature)


def signature_holds(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over an entry's hash is by ``public_key`` (32 raw bytes)."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _SIGNATURE_LABEL + digest)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


@dataclass(frozen=True, slots=True)
class RawEntry:
    """An entry as it was stored, not yet believed."""

    sequence: int
    content: bytes
    hash: bytes
    signature: bytes


def _parse(raw: RawEntry) -> dict[str, Any]:
    content = read_object(raw.content)
    wrong = (
        set(content) != _FIELDS
        or content["format"] != FORMAT
        or type(content["sequence"]) is not int
        or not all(isinstance(content[k], str) for k in ("kind", "previous", "site", "time"))
        or not isinstance(content["body"], dict)
        or canonical_json(content) != raw.content
    )
    if wrong:
        raise ValueError("not an entry of this format")
    return content


def read_chain(
    stored: Iterable[RawEntry], previous: Head | None = None, public_key: bytes | None = None
) -> Iterator[Entry]:
    """Check and return entries one after another; stops at the first that does not hold.

    Parameters
    ----------
    stored : iterable of RawEntry
        In the order of the file.
    previous : Head, optional
        The entry before them; left out, they must start with the entry "open".
    public_key : bytes, optional
        The site's raw public key. Left out, the key in "open" is taken, and the result
        proves only that the ledger agrees with itself.

    Raises
    ------
    TamperedError
        Names the entry and what is wrong with it.
    """
    site = None
    for raw in stored:
        place = previous.sequence + 1 if previous else 1
        if raw.sequence != place:
            raise TamperedError(
                f"entry {place} is missing or moved: entry {raw.sequence} stands in its place"
            )
        with reading(TamperedError(f"entry {place} is not readable as it was written")):
            content = _parse(raw)
        if content["sequence"] != place or content["previous"] != (
            previous.hash if previous else NO_PREVIOUS
        ):
            raise TamperedError(f"entry {place} does not follow the entry before it")
        if (content["kind"] == "open") != (place == 1):
            raise TamperedError(f"entry {place} is of a kind that cannot stand there")
        if entry_hash(content) != raw.hash:
            raise TamperedError(f"entry {place} was edited: its hash does not match")
        if public_key is None:
            public_key = _own_key(content)
        if not signature_holds(public_key, raw.hash, raw.signature):
            raise TamperedError(f"entry {place} was not signed with the site's key")
        site = site or content["site"]
        if content["site"] != site:
            raise TamperedError(f"entry {place} belongs to another site")
        entry = Entry(content, raw.hash, raw.signature)
        yield entry
        previous = entry.head


def _own_key(content: dict[str, Any]) -> bytes:
    with reading(TamperedError("entry 1 names no public key")):
        return from_hex(content["body"]["public_key"])
