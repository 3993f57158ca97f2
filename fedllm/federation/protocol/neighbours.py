"""The sites that one site shares masks with in an attempt, checked against what was signed."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from fedllm.canonical import from_hex, sha256, signing_bytes
from fedllm.encryption.sparse import MaskGraph, drawn_neighbours
from fedllm.errors import PeerError
from fedllm.federation.protocol.cohorts import (
    CohortMember,
    CohortTree,
    Neighbour,
    Neighbourhood,
    opened_digest,
)
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import (
    check_keys,
    check_member,
    hex_bytes,
    require,
)
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster

_SEED_BYTES = 32


@dataclass(frozen=True)
class Around:
    """A site's checked neighbourhood.

    Attributes
    ----------
    own : CohortMember
        The site's own entry.
    others : mapping of str to CohortMember
        Those that it shares masks with.
    drawn : tuple of str
        Those of them that it drew; none where the graph is complete.
    seeds : mapping of str to str
        What the others are said to have drawn their neighbours with, in hexadecimal.
    """

    own: CohortMember
    others: Mapping[str, CohortMember]
    drawn: tuple[str, ...]
    seeds: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def mask_keys(self) -> Mapping[str, bytes]:
        """The others' raw X25519 public keys.

        Raises
        ------
        PeerError
            If one is not hexadecimal.
        """
        return {name: hex_bytes(member.mask_key) for name, member in self.others.items()}


@lru_cache(maxsize=1 << 15)
def _one(member: CohortMember) -> CohortMember:
    """Return one object for all entries that are alike.

    Each site is told of all others, and what a thousand sites of one process were told must not
    stand in its memory a thousand times.
    """
    return member


def graph_of(statement: RoundStatement) -> MaskGraph:
    """Return who shares masks with whom in a round."""
    return MaskGraph(statement.neighbours, statement.missing, statement.colluders)


def own_seed(identity: Identity, ledger: str, statement: RoundStatement) -> bytes:
    """Return what a site draws its neighbours with: one seed for each statement.

    ``ledger`` is the id of the site's ledger.
    """
    return identity.derive(signing_bytes("fedllm.draw.v1", statement.digest, ledger))


def drawn_by(statement: RoundStatement, around: Around, name: str) -> tuple[str, ...]:
    """Return the neighbours that another site of a neighbourhood drew, as it was said.

    None where the graph is complete.

    Raises
    ------
    PeerError
        If it is not in the neighbourhood, has no seed there, or a malformed one.
    """
    require(name in around.others, "a site is asked about one that is not in its neighbourhood")
    if statement.neighbours == 0:
        return ()
    place = statement.cohort.index(name)
    drawn = _draw(statement, place, around.seeds.get(name, ""))
    return tuple(statement.cohort[other] for other in drawn)


def read_seed(name: str, seed: str) -> bytes:
    """Read what a site says that it drew its neighbours with, 32 bytes.

    Raises
    ------
    PeerError
        If it is not 64 hexadecimal digits.
    """
    try:
        return from_hex(seed, _SEED_BYTES)
    except ValueError:
        raise PeerError(f"the seed of '{name}' is malformed") from None


class Neighbourhoods:
    """What each site of a cohort has to know of it; made when it is asked for.

    Parameters
    ----------
    statement : RoundStatement
        The signed one.
    members : sequence of CohortMember
        The cohort's entries.
    seeds : mapping of str to str
        By name, what each site drew its neighbours with, in hexadecimal; nothing where the graph
        is complete. Who has no seed stands among others' neighbours alone.

    Raises
    ------
    PeerError
        If a seed is malformed.
    """

    def __init__(
        self,
        statement: RoundStatement,
        members: Sequence[CohortMember],
        seeds: Mapping[str, str],
    ) -> None:
        self._tree = CohortTree(members)
        self._places = {name: place for place, name in enumerate(statement.cohort)}
        self._cohort = statement.cohort
        self._drawn: dict[str, tuple[int, ...]] = {}
        self._near: list[dict[int, str]] | None = None
        if statement.neighbours:
            self._near = [{} for _ in statement.cohort]
            for name, seed in seeds.items():
                place = self._places[name]
                self._drawn[name] = _draw(statement, place, seed)
                for other in self._drawn[name]:
                    self._near[place].setdefault(other, seeds.get(statement.cohort[other], ""))
                    self._near[other][place] = seed
                self._near[place][place] = seed

    def of(self, name: str) -> Neighbourhood:
        """Return what one site of the cohort has to know."""
        everyone = dict.fromkeys(self._places.values(), "")
        near = everyone if self._near is None else self._near[self._places[name]]
        return self._tree.open(self._places[name], near)

    def answering(self, name: str, survivors: Collection[str]) -> list[str]:
        """Return whose agreement a site asks for; see `SiteMasks.answering`."""
        if self._near is None:
            return list(survivors)
        drawn = (self._cohort[place] for place in self._drawn[name])
        return [other for other in drawn if other in survivors]


def read_neighbourhood(
    found: Neighbourhood,
    statement: RoundStatement,
    identity: Identity,
    ledger: str,
    roster: Roster,
    signed: Container[CohortMember] = frozenset(),
) -> Around:
    """Check what a site was told of its cohort.

    Signatures are checked of its own entry and of the neighbours that it counts on: all, or those
    that it drew.

    Parameters
    ----------
    statement : RoundStatement
        With a checked signature.
    identity : Identity
        The site's own.
    ledger : str
        Id of its ledger.
    signed : container of CohortMember
        Entries for this run whose signatures need not be checked again.

    Raises
    ------
    PeerError
        If it does not lead to the signed digest, or is not what the sites drew.
    """
    sites = len(statement.cohort)
    require(identity.name in statement.cohort, "this site is not in the cohort")
    require(
        opened_digest(found, sites) == statement.members,
        "a neighbourhood is not that of the cohort",
    )
    near = {one.place: one for one in found.near}
    named = all(statement.cohort[place] == one.member.name for place, one in near.items())
    own = near.get(found.place)
    require(named and own is not None, "a neighbourhood is not that of the cohort")
    if own is None or own.member.name != identity.name:
        raise PeerError("a neighbourhood is another site's", "see the coordinator's own log")
    check_keys([one.member for one in found.near])
    drawn: tuple[int, ...] = ()
    if statement.neighbours == 0:
        require(len(near) == sites, "a neighbourhood leaves out a part of its cohort")
    else:
        seed = own_seed(identity, ledger, statement).hex()
        require(own.seed == seed, "a neighbourhood does not follow from this site's own seed")
        drawn = _draw(statement, found.place, seed)
        require(set(drawn) <= set(near), "a neighbourhood leaves out neighbours of this site")
        _check_drawn(statement, found.place, drawn, near)
    for place in near if statement.neighbours == 0 else (found.place, *drawn):
        if near[place].member not in signed:
            check_member(near[place].member, statement.run, roster)
    others = {
        one.member.name: _one(one.member) for place, one in near.items() if place != found.place
    }
    seeds = {one.member.name: one.seed for one in found.near if one.seed}
    drew = tuple(statement.cohort[place] for place in drawn)
    return Around(_one(own.member), others, drew, seeds)


def _check_drawn(
    statement: RoundStatement, own: int, drawn: tuple[int, ...], near: Mapping[int, Neighbour]
) -> None:
    for place in set(near) - set(drawn) - {own}:
        if own not in _draw(statement, place, near[place].seed):
            raise PeerError(
                f"'{statement.cohort[place]}' did not draw this site, and stands among its "
                "neighbours"
            )


def _draw(statement: RoundStatement, place: int, seed: str) -> tuple[int, ...]:
    raw = read_seed(statement.cohort[place], seed)
    sites, count = len(statement.cohort), statement.neighbours
    return drawn_neighbours(raw, statement.digest, place, sites, count)


class NeighbourhoodReader:
    """Reads neighbourhoods as `read_neighbourhood` does, and nothing twice.

    The last one is known, and so are the entries of a run whose signatures fitted.

    Parameters
    ----------
    identity : Identity
        The site's own.
    roster : Roster
        The federation's parties, pinned.
    """

    def __init__(self, identity: Identity, roster: Roster) -> None:
        self._identity = identity
        self._roster = roster
        self._run = ""
        self._signed: set[CohortMember] = set()
        self._last: tuple[str, str, bytes, Around] | None = None

    def read(self, found: Neighbourhood, statement: RoundStatement, ledger: str) -> Around:
        """Return a checked neighbourhood; see `read_neighbourhood`."""
        last, of = self._last, (statement.digest, ledger, sha256(found.model_dump_json()))
        if last is None or last[:3] != of:
            if statement.run != self._run:
                self._run, self._signed = statement.run, set()
            around = read_neighbourhood(
                found, statement, self._identity, ledger, self._roster, self._signed
            )
            counted = around.drawn or around.others
            self._signed |= {around.own, *(around.others[name] for name in counted)}
            last = (*of, around)
            self._last = last
        return last[3]
