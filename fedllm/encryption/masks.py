"""Pairwise masks under the encryption: only the sum of a whole cohort means anything.

Double masking after Bonawitz et al. 2017, "Practical secure aggregation": each pair of sites
shares a mask that cancels in the sum, and each site may add one of its own that it reveals
only when it knows which sites are in the sum. ``docs/encryption.md`` has the protocol, why
it is safe, and what breaks it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedllm.canonical import (
    canonical_json,
    from_hex,
    read_object,
    reading,
    sha256,
    signing_bytes,
)
from fedllm.encryption.plan import EncryptionPlan
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.randomness import RandomStream

_SEED_BYTES = 32


@dataclass(frozen=True)
class MaskScope:
    """What a mask is bound to, so that no mask ever serves two sums.

    Attributes
    ----------
    statement : str
        Digest of all that the parties of the sum agree on. Sites with different statements have
        masks that do not cancel.
    cohort : tuple of str
        Names of the sites in the round, sorted, each once.
    plan : EncryptionPlan
        A masked plan.
    """

    statement: str
    cohort: tuple[str, ...]
    plan: EncryptionPlan

    def __post_init__(self) -> None:
        if list(self.cohort) != sorted(set(self.cohort)) or len(self.cohort) < 2:
            raise ConfigError("a masked cohort is at least two different names in sorted order")
        if not self.plan.masked or len(self.cohort) > self.plan.max_sites:
            raise ConfigError("masks need a masked encryption plan with room for the cohort")

    def to_bytes(self) -> bytes:
        """Return the bytes that stand for the scope in statements and derived keys."""
        bound_to = (self.statement, self.plan.fingerprint())
        return signing_bytes("fedllm.mask-scope.v3", *bound_to, *self.cohort)


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
            pairs = {name: from_hex(seed, _SEED_BYTES) for name, seed in values["pairs"].items()}
            reveal = cls(values["site"], from_hex(values["own"], _SEED_BYTES), pairs)
            if not {reveal.site, *pairs} <= set(scope.cohort) or reveal.to_bytes() != bytes(blob):
                raise ValueError
        return reveal


class SiteMasks:
    """One site's masks in one round.

    Parameters
    ----------
    scope : MaskScope
        The round.
    site : str
        This site's name.
    private_key : X25519PrivateKey
        This site's mask key.
    peer_keys : mapping of str to bytes
        Raw X25519 public keys of all other sites of the cohort, whose signatures the caller
        has checked.
    min_survivors : int
        Fewest sites whose sum this site lets anybody open.
    own_mask : bool
        Adds the site's own mask. The sum then opens only with the survivors' reveals, and
        goes on without the sites that dropped out. Without it a dropout voids the round.
    own_seed : bytes, optional
        Seed of the site's own mask, 32 secret bytes for this round alone, for a site that
        must survive a restart; random when left out.

    Raises
    ------
    PeerError
        If a peer's key is missing, repeated or of small order.
    RefusedError
        If the cohort is smaller than ``min_survivors``.
    """

    def __init__(
        self,
        scope: MaskScope,
        site: str,
        private_key: X25519PrivateKey,
        peer_keys: Mapping[str, bytes],
        *,
        min_survivors: int = 2,
        own_mask: bool = False,
        own_seed: bytes | None = None,
    ) -> None:
        if site not in scope.cohort or set(peer_keys) != set(scope.cohort) - {site}:
            raise PeerError("the mask keys of the round are not those of its cohort")
        if len(scope.cohort) < max(2, min_survivors):
            raise RefusedError(
                f"the cohort has {len(scope.cohort)} sites, fewer than this site accepts",
                "wait for more sites",
            )
        self.scope = scope
        self.site = site
        self._min_survivors = max(2, min_survivors)
        self._pair_seeds = _pair_seeds(scope, site, private_key, peer_keys)
        if own_seed is not None and (len(own_seed) != _SEED_BYTES or not own_mask):
            raise ConfigError("a seed of a site's own mask is 32 bytes, and needs own_mask")
        self._own_seed = (own_seed or os.urandom(_SEED_BYTES)) if own_mask else None
        self._survivors: tuple[str, ...] | None = None
        self._used = False

    def __repr__(self) -> str:
        return f"SiteMasks({self.site})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a site's masks must not be copied")

    def mask_for_update(self) -> NDArray[np.uint64]:
        """Return the mask of this site's update, once.

        Returns
        -------
        uint64 (S,)
            Uniform below the plan's plaintext modulus.

        Raises
        ------
        RefusedError
            If it was asked for before: two updates under one mask give away their difference.
        """
        if self._used:
            raise RefusedError("this round's mask has been used", "open a new round")
        self._used = True
        parts = [(_sign(self.site, peer), seed) for peer, seed in self._pair_seeds.items()]
        if self._own_seed is not None:
            parts.append((1, self._own_seed))
        return _expand(parts, self.scope.plan)

    def statement(self, survivors: Sequence[str]) -> bytes:
        """Settle on the sites in the sum; the bytes are for this site to sign.

        Parameters
        ----------
        survivors : sequence of str
            Sites whose updates arrived, as the coordinator says, each once and sorted.

        Raises
        ------
        RefusedError
            If they are too few, not of the cohort, not sorted, without this site, or other than
            before: a site settles once.
        """
        chosen = tuple(sorted(set(survivors)))
        known = chosen == tuple(survivors) and set(chosen) <= set(self.scope.cohort)
        known = known and self.site in chosen
        if self._own_seed is None or not known or len(chosen) < self._min_survivors:
            raise RefusedError(
                "these survivors of a round are not a set that this site lets anybody open",
                "repeat the round with the sites that are left",
            )
        if self._survivors not in (None, chosen):
            raise RefusedError(
                "this site has already settled on other survivors of the round",
                "repeat the round; the coordinator named two sets",
            )
        self._survivors = chosen
        return survivor_statement(self.scope, chosen)

    def reveal(self, statements: Mapping[str, bytes]) -> Reveal:
        """Reveal what opens the sum of the survivors, and nothing smaller.

        Parameters
        ----------
        statements : mapping of str to bytes
            Every survivor's statement, whose signatures the caller has checked. All other
            survivors must have settled on the same set, or two sums could be opened.

        Raises
        ------
        RefusedError
            If this site has settled on nothing or a survivor's statement is missing or other.
        """
        if self._survivors is None or self._own_seed is None:
            raise RefusedError("this site has not settled on the survivors of the round")
        require_agreement(self.scope, self._survivors, statements)
        dropped = set(self.scope.cohort) - set(self._survivors)
        pairs = {name: self._pair_seeds[name] for name in sorted(dropped)}
        return Reveal(self.site, self._own_seed, pairs)


def survivor_statement(scope: MaskScope, survivors: Iterable[str]) -> bytes:
    """Return the bytes that a site signs to say which sites are in the sum."""
    return signing_bytes("fedllm.survivors.v2", scope.to_bytes(), *sorted(set(survivors)))


def require_agreement(
    scope: MaskScope, survivors: Iterable[str], statements: Mapping[str, bytes]
) -> None:
    """Check that every survivor made the same statement.

    Raises
    ------
    RefusedError
        If one is missing, other, or of a site that is no survivor.
    """
    names = sorted(set(survivors))
    expected = survivor_statement(scope, names)
    if sorted(statements) != names or any(s != expected for s in statements.values()):
        raise RefusedError(
            "the survivors of the round do not agree on who is in the sum",
            "repeat the round; the coordinator may have named different sets",
        )


def correction_for(
    scope: MaskScope, survivors: Collection[str], reveals: Collection[Reveal]
) -> NDArray[np.uint64]:
    """Return what to add to the opened sum so that the masks of the survivors cancel.

    Parameters
    ----------
    scope : MaskScope
        The round.
    survivors : collection of str
        Sites in the sum.
    reveals : collection of Reveal
        One from every survivor.

    Returns
    -------
    uint64 (S,)
        To be added modulo the plaintext modulus.

    Raises
    ------
    PeerError
        If a reveal is missing, or does not hold exactly the sites that dropped out.
    """
    dropped = sorted(set(scope.cohort) - set(survivors))
    if sorted(reveal.site for reveal in reveals) != sorted(set(survivors)):
        raise PeerError(
            "a survivor of the round did not reveal its masks", "repeat the round without it"
        )
    parts = []
    for reveal in reveals:
        if sorted(reveal.pair_seeds) != dropped:
            raise PeerError(f"site {reveal.site} revealed other masks than those that are left")
        parts.append((-1, reveal.own_seed))
        parts += [(-_sign(reveal.site, peer), s) for peer, s in reveal.pair_seeds.items()]
    return _expand(parts, scope.plan)


def _sign(site: str, peer: str) -> int:
    return 1 if site < peer else -1


def _pair_seeds(
    scope: MaskScope, site: str, private_key: X25519PrivateKey, peer_keys: Mapping[str, bytes]
) -> dict[str, bytes]:
    own = private_key.public_key().public_bytes_raw()
    if len({own, *peer_keys.values()}) <= len(peer_keys):
        raise PeerError("two sites of the cohort have the same mask key")
    salt = sha256(scope.to_bytes())
    seeds = {}
    for peer, key in peer_keys.items():
        try:
            shared = private_key.exchange(X25519PublicKey.from_public_bytes(key))
        except ValueError:
            raise PeerError(f"the mask key of site {peer} is not a valid X25519 key") from None
        first, second = sorted([(site, own), (peer, key)])
        info = signing_bytes("fedllm.masks.v2", *first, *second)
        seeds[peer] = HKDF(SHA256(), _SEED_BYTES, salt, info).derive(shared)
    return seeds


def _expand(parts: Iterable[tuple[int, bytes]], plan: EncryptionPlan) -> NDArray[np.uint64]:
    """Add up streams of uniform slots, each with its sign, modulo the plaintext modulus."""
    modulus = np.uint64(plan.plain_modulus)
    total = np.zeros(plan.slots, dtype=np.uint64)
    for sign, seed in parts:
        stream = _uniform(RandomStream(seed), plan.plain_modulus, plan.slots)
        total += stream if sign > 0 else modulus - stream
        np.minimum(total, total - modulus, out=total)
    return total


def _uniform(stream: RandomStream, modulus: int, count: int) -> NDArray[np.uint64]:
    """Draw integers exactly uniform on [0, modulus): what lies above is drawn again."""
    bits = np.uint64((1 << modulus.bit_length()) - 1)
    result = stream.uint64(count) & bits
    while len(above := np.flatnonzero(result >= modulus)):
        result[above] = stream.uint64(len(above)) & bits
    return result
