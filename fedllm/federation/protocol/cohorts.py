"""A cohort's signed entries behind one digest, and the part of it that one site needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated

from pydantic import Field

from fedllm.canonical import canonical_json, from_hex, sha256, signing_bytes
from fedllm.errors import PeerError
from fedllm.federation.protocol.wire import Header

Level = dict[int, bytes]


class CohortMember(Header):
    """What one site of a cohort says of itself for one run, signed by the site.

    Attributes
    ----------
    name : str
        The site's name in the roster.
    mask_key : str
        Public X25519 key, 64 hexadecimal digits.
    units : int
        About how many records or persons it has, where its sampling rate and noise follow from
        that; 0 where nothing does. See `Mechanism.announced_units`.
    signature : str
        The site's Ed25519 signature of `member_statement`, in hexadecimal.
    """

    name: str
    mask_key: str
    units: Annotated[int, Field(ge=0, lt=2**53)] = 0
    signature: str


def member_statement(run: str, name: str, mask_key: str, units: int) -> bytes:
    """Return the bytes that a site signs to bind its mask key and its size to one run."""
    return signing_bytes("fedllm.member.v3", run, name, mask_key, units)


class Neighbour(Header):
    """One site of a cohort as another one is told of it.

    Attributes
    ----------
    place : int
        In the cohort, from 0.
    member : CohortMember
        Its entry.
    seed : str
        What it drew its neighbours with, 64 hexadecimal digits; "" where it drew none.
    """

    place: int
    member: CohortMember
    seed: str = ""


class Neighbourhood(Header):
    """What one site has to know of its cohort.

    Attributes
    ----------
    place : int
        The site's own.
    near : tuple of Neighbour
        The site itself and all that it shares masks with, by place.
    siblings : tuple of str
        The digests that lead from their entries to that of the cohort, level by level.
    """

    place: int
    near: tuple[Neighbour, ...]
    siblings: tuple[str, ...] = ()


@lru_cache(maxsize=1 << 15)
def _leaf(member: CohortMember) -> bytes:
    said = canonical_json(member.model_dump(mode="json"))
    return sha256(signing_bytes("fedllm.cohort-leaf.v1", said))


@lru_cache(maxsize=1 << 15)
def _node(left: bytes, right: bytes) -> bytes:
    return sha256(signing_bytes("fedllm.cohort-node.v1", left, right))


class CohortTree:
    """A Merkle tree over the entries of a cohort (Merkle 1987; odd nodes go up as they are).

    Parameters
    ----------
    members : sequence of CohortMember
        Sorted by name.
    """

    def __init__(self, members: Sequence[CohortMember]) -> None:
        self.members = tuple(members)
        self._told: dict[tuple[int, str], Neighbour] = {}
        self._levels = [[_leaf(member) for member in self.members]]
        while len(below := self._levels[-1]) > 1:
            pairs = [_node(*below[i : i + 2]) for i in range(0, len(below) - 1, 2)]
            self._levels.append(pairs + below[len(below) - len(below) % 2 :])

    @property
    def root(self) -> str:
        """The digest of all entries, in hexadecimal."""
        return self._levels[-1][0].hex()

    def open(self, index: int, seeds: Mapping[int, str]) -> Neighbourhood:
        """Return what a site has to know of the cohort.

        Parameters
        ----------
        index : int
            The site's place.
        seeds : mapping of int to str
            The places of its neighbours, and the seed of each that drew neighbours, else "".
        """
        places = {index, *seeds}
        near = tuple(self._neighbour(place, seeds.get(place, "")) for place in sorted(places))
        siblings: list[str] = []
        for level in self._texts:
            beside = {place ^ 1 for place in places} - places
            siblings += [level[place] for place in sorted(beside) if place < len(level)]
            places = {place // 2 for place in places}
        return Neighbourhood(place=index, near=near, siblings=tuple(siblings))

    @cached_property
    def _texts(self) -> list[list[str]]:
        return [[digest.hex() for digest in level] for level in self._levels[:-1]]

    def _neighbour(self, place: int, seed: str) -> Neighbour:
        # A site stands in as many neighbourhoods as it has neighbours.
        found = self._told.get((place, seed))
        if found is None:
            found = Neighbour(place=place, member=self.members[place], seed=seed)
            self._told[place, seed] = found
        return found


def cohort_digest(members: Sequence[CohortMember]) -> str:
    """Return the digest of a cohort's entries, sorted by name, in hexadecimal."""
    return CohortTree(members).root


def opened_digest(found: Neighbourhood, sites: int) -> str:
    """Return the digest of the cohort of ``sites`` that a neighbourhood is of, in hexadecimal.

    Raises
    ------
    PeerError
        If its places are not those of a cohort of that size, or digests are missing or left over.
    """
    places = [one.place for one in found.near]
    fits = places == sorted(set(places)) and bool(places) and places[0] >= 0
    if not fits or places[-1] >= sites:
        raise PeerError("a neighbourhood names places that the cohort does not have")
    level: Level = {one.place: _leaf(one.member) for one in found.near}
    siblings, width = _digests(found.siblings), sites
    while width > 1:
        level, width = _above(level, siblings, width), (width + 1) // 2
    if siblings:
        raise _unfit()
    return level[0].hex()


def _above(level: Level, siblings: list[bytes], width: int) -> Level:
    result: Level = {}
    for place, digest in level.items():
        other = place ^ 1
        if place // 2 in result:
            continue
        if other >= width:
            result[place // 2] = digest
            continue
        if other not in level and not siblings:
            raise _unfit()
        beside = level[other] if other in level else siblings.pop(0)
        result[place // 2] = _node(digest, beside) if place < other else _node(beside, digest)
    return result


def _digests(texts: Iterable[str]) -> list[bytes]:
    try:
        return [from_hex(text, 32) for text in texts]
    except ValueError:
        raise _unfit() from None


def _unfit() -> PeerError:
    return PeerError("a neighbourhood does not lead to the digest of its cohort")
