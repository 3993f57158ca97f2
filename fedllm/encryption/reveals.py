"""What one survivor reveals of its masks, and its one written form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedllm.canonical import canonical_json, from_hex, read_object, reading
from fedllm.encryption.pairs import SEED_BYTES
from fedllm.encryption.survivors import MaskScope
from fedllm.errors import PeerError


@dataclass(frozen=True, repr=False)
class Reveal:
    """What one surviving site reveals once the sites in the sum are agreed.

    Attributes
    ----------
    site : str
        The survivor.
    own_seed : bytes
        Seed of its own mask.
    pair_seeds : mapping of str to bytes
        Seeds that it shares with the sites that are not in the sum.
    """

    site: str
    own_seed: bytes
    pair_seeds: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """Write the reveal as canonical JSON."""
        pairs = {name: seed.hex() for name, seed in self.pair_seeds.items()}
        return canonical_json({"site": self.site, "own": self.own_seed.hex(), "pairs": pairs})

    @classmethod
    def from_bytes(cls, blob: bytes, scope: MaskScope) -> Reveal:
        """Read a reveal of a site of this scope.

        Raises
        ------
        PeerError
            If the bytes are not the canonical form of one.
        """
        with reading(PeerError("a site sent a malformed reveal of its masks")):
            if len(blob) > 1 << 20:
                raise ValueError
            values = read_object(bytes(blob))
            pairs = {name: from_hex(seed, SEED_BYTES) for name, seed in values["pairs"].items()}
            reveal = cls(values["site"], from_hex(values["own"], SEED_BYTES), pairs)
            if not {reveal.site, *pairs} <= set(scope.cohort) or reveal.to_bytes() != bytes(blob):
                raise ValueError
        return reveal
