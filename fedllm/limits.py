"""Limits that several packages share, which do not know each other."""

from __future__ import annotations

# Most sites of one sum. Fields, counters and noise bounds of the encryption and the proofs of
# shared noise are checked up to here; see docs/encryption.md and docs/privacy-accounting.md.
MAX_SITES = 16_384
