"""Which data sets of an earlier ledger share records: for reading them, none are written any more.

Every record had a tag: keyed BLAKE2b (RFC 7693) over its canonical bytes, under a key that
never left the site. Two data sets that share a tag share a record, whatever their names, files
or orders. Without the key a tag says nothing, not even to someone who can guess the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedllm.canonical import canonical_json, sha256_hex

Unit = Literal["record", "person"]

TAG_BYTES = 16
# What `DatasetIdentity.describe` says.
DESCRIPTION = (
    *("unit", "key_check", "records", "persons"),
    *("records_sha256", "persons_sha256"),
)


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
