"""Know the same records again, without keeping them and without anyone else being able to.

Every record gets a tag: keyed BLAKE2b (RFC 7693) over its canonical bytes, under a key that
never leaves the site. Two data sets that share a tag share a record, whatever their names,
files or orders. Without the key a tag says nothing, not even to someone who can guess the
record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedllm.canonical import canonical_json, sha256_hex
from fedllm.errors import ConfigError, DataError

Unit = Literal["record", "person"]

TAG_BYTES = 16
# What `DatasetIdentity.describe` says.
DESCRIPTION = (
    *("unit", "key_check", "records", "persons"),
    *("records_sha256", "persons_sha256"),
)


class FingerprintedRecord(Protocol):
    """What a fingerprint needs of a record."""

    @property
    def unit(self) -> str | None:
        """The person that the record belongs to, if that is known."""

    def canonical(self) -> bytes:
        """Return stable bytes of the record's content."""


class FingerprintKey:
    """The site's secret key for tags; hidden in ``repr`` and not to be pickled.

    Parameters
    ----------
    site_secret : bytes
        At least 16 secret bytes that the site keeps for good, such as its private key. Tags
        under another secret do not match, so the ledger refuses a change of it.

    Raises
    ------
    ConfigError
        If the secret is too short.
    """

    def __init__(self, site_secret: bytes) -> None:
        if len(site_secret) < 16:
            raise ConfigError("the site secret is too short", "give at least 16 secret bytes")
        derive = HKDF(SHA256(), length=64, salt=None, info=b"fedllm.fingerprints.v1")
        self._key = derive.derive(site_secret)

    def __repr__(self) -> str:
        return "FingerprintKey(<hidden>)"

    def __reduce__(self) -> tuple[str, ...]:
        raise TypeError("a FingerprintKey must not be copied between processes")

    def tag(self, kind: Unit, content: bytes) -> bytes:
        """Return the 16-byte tag of a record's canonical bytes or of a person's name."""
        return self._tag(kind.encode(), content)

    @property
    def check(self) -> str:
        """Hex value that is equal for equal keys and reveals nothing of the key."""
        return self._tag(b"key check", b"").hex()

    def _tag(self, kind: bytes, content: bytes) -> bytes:
        return hashlib.blake2b(
            content, digest_size=TAG_BYTES, key=self._key, person=kind.ljust(16, b"\0")
        ).digest()


@dataclass(frozen=True, slots=True)
class DatasetIdentity:
    """Which records, and which persons, a data set holds.

    Attributes
    ----------
    unit : {"record", "person"}
        What one unit of privacy protects.
    key_check : str
        Names the key under which the tags were made.
    record_tags, person_tags : bytes
        Distinct 16-byte tags, sorted and joined; no person tags where persons are unknown.
    """

    unit: Unit
    key_check: str
    record_tags: bytes
    person_tags: bytes

    def __repr__(self) -> str:
        return f"DatasetIdentity({self.id[:12]}, unit={self.unit!r})"

    @property
    def id(self) -> str:
        """SHA-256 over everything here: 64 hex digits, the data set's name in the ledger."""
        return sha256_hex(canonical_json(self.describe()))

    def describe(self) -> dict[str, str | int]:
        """Return counts and SHA-256 digests of the tags, for the signed ledger entry."""
        return {
            "unit": self.unit,
            "key_check": self.key_check,
            "records": len(self.record_tags) // TAG_BYTES,
            "persons": len(self.person_tags) // TAG_BYTES,
            "records_sha256": sha256_hex(self.record_tags),
            "persons_sha256": sha256_hex(self.person_tags),
        }


def identify(
    records: Iterable[FingerprintedRecord], key: FingerprintKey, unit: Unit = "record"
) -> DatasetIdentity:
    """Fingerprint a data set; order, repetition, names and files change nothing.

    Parameters
    ----------
    records : iterable of FingerprintedRecord
        The whole data set that training draws from.
    key : FingerprintKey
        The site's own.
    unit : {"record", "person"}
        The unit of privacy. Persons are tagged for either unit where they are known.

    Raises
    ------
    DataError
        If there are no records, or a record names no person though persons are protected.
    """
    record_tags, person_tags = set(), set()
    for record in records:
        record_tags.add(key.tag("record", record.canonical()))
        if record.unit is not None:
            person_tags.add(key.tag("person", record.unit.encode()))
        elif unit == "person":
            raise DataError(
                "a record names no person, but data.unit promises privacy for persons",
                "fill the data.unit column of every record",
            )
    if not record_tags:
        raise DataError("the data set holds no records", "check data.train and its columns")
    return DatasetIdentity(
        unit, key.check, b"".join(sorted(record_tags)), b"".join(sorted(person_tags))
    )


def share_a_tag(left: bytes, right: bytes) -> bool:
    """Whether two sorted, joined lists of tags have one in common."""
    import numpy as np

    # Big-endian 16-byte strings of equal length compare as bytes do.
    a, b = (np.frombuffer(tags, dtype=f"S{TAG_BYTES}") for tags in (left, right))
    if len(a) > len(b):
        a, b = b, a
    if len(a) == 0:
        return False
    places = np.minimum(np.searchsorted(b, a), len(b) - 1)
    return bool((b[places] == a).any())
