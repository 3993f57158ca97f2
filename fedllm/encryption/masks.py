"""Pairwise masks under the encryption: only the sum of a whole cohort means anything.

Double masking after Bonawitz et al. 2017, "Practical secure aggregation": pairs of sites share
masks that cancel in the sum, and each site may add one of its own that it reveals only when it
knows which sites are in the sum. In a large cohort a site shares masks with some others alone,
see `sparse`. ``docs/protocol.md`` has the protocol, why it is safe, and what breaks it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from numpy.typing import NDArray

from fedllm.encryption.escrow import Escrow, lock
from fedllm.encryption.pairs import SEED_BYTES, MaskKey, PairSecrets
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.survivors import (
    MaskScope,
    holders_of,
    require_agreement,
    settled_statement,
    share_purpose,
    shares_needed,
    unopenable,
)
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.randomness import RandomStream


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
        Raw X25519 public keys of the sites that this one shares masks with: of all others, or of
        those that it drew and those that drew it. The caller has checked the signatures of all
        others, or of those that it drew.
    drawn : collection of str, optional
        The neighbours that this site drew, where the graph is not complete.
    min_survivors : int
        Fewest sites whose sum this site lets anybody open.
    own_mask : bool
        Adds the site's own mask. The sum then opens only with the survivors' reveals, and
        goes on without the sites that dropped out. Without it a dropout voids the round.
    own_seed : bytes, optional
        Seed of the site's own mask, 32 secret bytes for this round alone, for a site that
        must survive a restart; random when left out.
    pairs : PairSecrets, optional
        What the site has derived of these keys before.

    Raises
    ------
    PeerError
        If a peer's key is missing, repeated or of small order, or the drawn are too few.
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
        drawn: Collection[str] | None = None,
        pairs: PairSecrets | None = None,
    ) -> None:
        others = frozenset(scope.cohort) - {site}
        self._drawn = others if scope.graph.complete else frozenset(drawn or ())
        there = set(peer_keys) == others if scope.graph.complete else set(peer_keys) <= others
        if site not in scope.cohort or not there or not self._drawn <= set(peer_keys):
            raise PeerError("the mask keys of the round are not those of its cohort")
        if not scope.graph.complete and len(self._drawn) != scope.graph.neighbours:
            raise PeerError("a site did not draw as many neighbours as the round has")
        if len(scope.cohort) < max(2, min_survivors):
            raise RefusedError(
                f"the cohort has {len(scope.cohort)} sites, fewer than this site accepts",
                "wait for more sites",
            )
        self.scope = scope
        self.site = site
        self._min_survivors = max(2, min_survivors)
        self._peers = tuple(peer_keys)
        self._pairs = pairs or PairSecrets(scope, site, MaskKey(private_key), peer_keys)
        if own_seed is not None and (len(own_seed) != SEED_BYTES or not own_mask):
            raise ConfigError("a seed of a site's own mask is 32 bytes, and needs own_mask")
        self._own_seed = (own_seed or os.urandom(SEED_BYTES)) if own_mask else None
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
        parts = [(_sign(self.site, peer), self._pairs.seed(peer)) for peer in self._peers]
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
            If they are too few, not of the cohort, not sorted, without this site, without too
            many of its neighbours, or other than before: a site settles once.
        """
        if self._own_seed is None:
            raise unopenable()
        words = settled_statement(
            self.scope, self.site, self._drawn, survivors, self._min_survivors
        )
        chosen = tuple(survivors)
        if self._survivors not in (None, chosen):
            raise RefusedError(
                "this site has already settled on other survivors of the round",
                "repeat the round; the coordinator named two sets",
            )
        self._survivors = chosen
        return words

    def reveal(self, statements: Mapping[str, bytes]) -> Reveal:
        """Reveal what opens the sum of the survivors, and nothing smaller.

        Parameters
        ----------
        statements : mapping of str to bytes
            Statements whose signatures the caller has checked, of each of `answering`. They must
            have settled on the same set, or another sum could be opened with their masks.

        Raises
        ------
        RefusedError
            If this site has settled on nothing or a survivor's statement is missing or other.
        """
        survivors = self._settled()
        require_agreement(self.scope, survivors, statements, self.answering(survivors))
        return self._reveal(survivors)

    def escrow(self, key: bytes, seal: Callable[[bytes], bytes]) -> Escrow | None:
        """Leave with the other survivors what this site would reveal, should it go away.

        It opens with the shares (`share`) of so many of them that one is no colluder, which gives
        its own under the conditions alone under which this site itself would reveal.

        Parameters
        ----------
        key : bytes
            32 secret bytes, for this scope and these survivors alone.
        seal : callable
            Makes of `Reveal.to_bytes` what the site would send.

        Returns
        -------
        Escrow, optional
            None where there are not enough survivors whom this site asks for their agreement.

        Raises
        ------
        RefusedError
            If this site has settled on nothing.
        """
        survivors = self._settled()
        holders = holders_of(self.answering(survivors), self.site)
        needed = shares_needed(self.scope, len(holders), self._min_survivors)
        if needed is None:
            return None
        about = share_purpose(self.scope, survivors, self.site, self._own_drawn())
        shares = [self._share(holder, about) for holder in holders]
        return lock(seal(self._reveal(survivors).to_bytes()), key, shares, needed)

    def share(self, owner: str, drawn: Collection[str], statements: Mapping[str, bytes]) -> bytes:
        """Return this site's share of what another survivor left, 32 bytes.

        Parameters
        ----------
        owner : str
            Who left it.
        drawn : collection of str
            The neighbours that the owner drew, as this site was told; none where the graph is
            complete. Of others the share is another one, and opens nothing.
        statements : mapping of str to bytes
            Statements whose signatures the caller has checked: the owner's, and those of whom the
            owner would ask for theirs.

        Raises
        ------
        RefusedError
            If this site has settled on nothing, holds no share of this owner's, the owner would
            not reveal, or a statement is missing or other.
        """
        survivors = self._settled()
        asked = set(survivors) if self.scope.graph.complete else {*drawn} & {*survivors}
        holds = owner != self.site and owner in survivors and self.site in asked
        if not holds or owner not in self._peers:
            raise RefusedError(f"this site holds no share of what '{owner}' left")
        settled_statement(self.scope, owner, drawn, survivors, self._min_survivors)
        require_agreement(self.scope, survivors, statements, asked | {owner})
        return self._share(owner, share_purpose(self.scope, survivors, owner, drawn))

    def _settled(self) -> tuple[str, ...]:
        if self._survivors is None or self._own_seed is None:
            raise RefusedError("this site has not settled on the survivors of the round")
        return self._survivors

    def _reveal(self, survivors: Collection[str]) -> Reveal:
        if self._own_seed is None:
            raise unopenable()
        dropped = set(self._peers) - set(survivors)
        pairs = {name: self._pairs.seed(name) for name in sorted(dropped)}
        return Reveal(self.site, self._own_seed, pairs)

    def _own_drawn(self) -> Collection[str]:
        return () if self.scope.graph.complete else self._drawn

    def _share(self, peer: str, about: bytes) -> bytes:
        tag = HMAC(self._pairs.share_key(peer), SHA256())
        tag.update(about)
        return tag.finalize()

    def answering(self, survivors: Iterable[str]) -> tuple[str, ...]:
        """Return whose agreement this site asks for: all survivors', or those that it drew."""
        chosen = set(survivors)
        return tuple(sorted(chosen if self.scope.graph.complete else chosen & self._drawn))


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
        If a reveal is missing, or holds others than the sites that dropped out; all of them,
        where the graph is complete.
    """
    dropped = set(scope.cohort) - set(survivors)
    if sorted(reveal.site for reveal in reveals) != sorted(set(survivors)):
        raise PeerError(
            "a survivor of the round did not reveal its masks", "repeat the round without it"
        )
    parts = []
    for reveal in reveals:
        named = set(reveal.pair_seeds)
        if named != dropped and not (named <= dropped and not scope.graph.complete):
            raise PeerError(f"site {reveal.site} revealed other masks than those that are left")
        parts.append((-1, reveal.own_seed))
        parts += [(-_sign(reveal.site, peer), s) for peer, s in reveal.pair_seeds.items()]
    return _expand(parts, scope.plan)


def _sign(site: str, peer: str) -> int:
    return 1 if site < peer else -1


def _expand(parts: Iterable[tuple[int, bytes]], plan: EncryptionPlan) -> NDArray[np.uint64]:
    """Add up streams of uniform slots, each with its sign, modulo the plaintext modulus."""
    modulus = np.uint64(plan.plain_modulus)
    # So many slots add up without a carry out of 64 bits.
    most = (2**64 - 1) // plan.plain_modulus
    totals = {sign: np.zeros(plan.slots, dtype=np.uint64) for sign in (1, -1)}
    added = dict.fromkeys(totals, 0)
    for sign, seed in parts:
        if added[sign] == most:
            totals[sign] %= modulus
            added[sign] = 1
        totals[sign] += _uniform(RandomStream(seed), plan.plain_modulus, plan.slots)
        added[sign] += 1
    return (totals[1] % modulus + (modulus - totals[-1] % modulus)) % modulus


def _uniform(stream: RandomStream, modulus: int, count: int) -> NDArray[np.uint64]:
    """Draw integers exactly uniform on [0, modulus): what lies above is drawn again."""
    bound = 1 << modulus.bit_length()
    # One call of the cipher has nearly always all that is drawn again, too.
    words = stream.uint64(count * bound // modulus + count // 16)
    words &= np.uint64(bound - 1)
    result, rest = words[:count], words[count:]
    above = np.flatnonzero(result >= modulus)
    while len(above):
        if len(above) > len(rest):
            more = stream.uint64(len(above)) & np.uint64(bound - 1)
            rest = np.concatenate([rest, more])
        again, rest = rest[: len(above)], rest[len(above) :]
        result[above] = again
        above = above[again >= modulus]
    return result
