"""Who is in a masked sum: what masks are bound to, and what sites sign to agree on survivors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from fedllm.canonical import sha256, signing_bytes
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.sparse import COMPLETE, MaskGraph, most_colluding
from fedllm.errors import ConfigError, RefusedError


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
    graph : MaskGraph
        Who shares masks with whom.
    """

    statement: str
    cohort: tuple[str, ...]
    plan: EncryptionPlan
    graph: MaskGraph = COMPLETE

    def __post_init__(self) -> None:
        if list(self.cohort) != sorted(set(self.cohort)) or len(self.cohort) < 2:
            raise ConfigError("a masked cohort is at least two different names in sorted order")
        if not self.plan.masked or len(self.cohort) > self.plan.max_sites:
            raise ConfigError("masks need a masked encryption plan with room for the cohort")

    def to_bytes(self) -> bytes:
        """Return the bytes that stand for the scope in statements and derived keys."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        # The statement's digest holds plan, cohort and graph; they stand here for whoever
        # makes a scope without one.
        graph = (self.graph.neighbours, self.graph.missing)
        names = _names(self.cohort)
        return signing_bytes(
            "fedllm.mask-scope.v4", self.statement, self.plan.fingerprint(), names, *graph
        )


@lru_cache(maxsize=4)
def _names(sites: tuple[str, ...]) -> bytes:
    """Return what stands for a cohort's or survivors' names; each step of an attempt asks."""
    return sha256(signing_bytes("fedllm.names.v1", *sites))


def settled_statement(
    scope: MaskScope,
    site: str,
    drawn: Collection[str],
    survivors: Sequence[str],
    min_survivors: int,
) -> bytes:
    """Return what a site signs to settle on survivors, if it may settle on them.

    Parameters
    ----------
    drawn : collection of str
        The neighbours that the site drew; of no account where the graph is complete.
    survivors : sequence of str
        Sites whose updates arrived, as the coordinator says.
    min_survivors : int
        Fewest sites whose sum this site lets anybody open.

    Raises
    ------
    RefusedError
        If they are too few, not of the cohort, not sorted, without this site, or without too many
        of its neighbours.
    """
    chosen = set(survivors)
    known = sorted(chosen) == list(survivors) and chosen <= set(scope.cohort) and site in chosen
    if not scope.graph.complete:
        known = known and len(set(drawn) - chosen) <= scope.graph.missing
    if not known or len(chosen) < max(2, min_survivors):
        raise unopenable()
    return survivor_statement(scope, survivors)


def unopenable() -> RefusedError:
    """Return the refusal of survivors whose sum a site does not let anybody open."""
    return RefusedError(
        "these survivors of a round are not a set that this site lets anybody open",
        "repeat the round with the sites that are left",
    )


def survivor_statement(scope: MaskScope, survivors: Iterable[str]) -> bytes:
    """Return the bytes that a site signs to say which sites are in the sum."""
    names = _names(tuple(sorted(set(survivors))))
    return signing_bytes("fedllm.survivors.v3", scope.to_bytes(), names)


def require_agreement(
    scope: MaskScope,
    survivors: Iterable[str],
    statements: Mapping[str, bytes],
    answering: Iterable[str],
) -> None:
    """Check that all of ``answering`` made the same statement on the survivors.

    Raises
    ------
    RefusedError
        If one is missing, other, or of another site.
    """
    expected = survivor_statement(scope, survivors)
    agree = all(statement == expected for statement in statements.values())
    if sorted(statements) != sorted(answering) or not agree:
        raise RefusedError(
            "the survivors of the round do not agree on who is in the sum",
            "repeat the round; the coordinator may have named different sets",
        )


def holders_of(answering: Iterable[str], site: str) -> tuple[str, ...]:
    """Return who holds shares of what a survivor leaves: those whose agreement it asks for."""
    return tuple(sorted(set(answering) - {site}))


def shares_needed(scope: MaskScope, holders: int, min_survivors: int) -> int | None:
    """Return how many shares open what a survivor leaves.

    More than colluders can hold: where the graph is complete, those beside whom two honest sites
    are in the smallest sum. And at least two thirds of them.

    Parameters
    ----------
    holders : int
        How many there are.
    min_survivors : int
        Fewest sites whose sum is opened.

    Returns
    -------
    int, optional
        None where all of them are too few.
    """
    if scope.graph.complete:
        colluding = max(2, min_survivors) - 2
    else:
        colluding = most_colluding(len(scope.cohort), scope.graph)
    needed = max(colluding + 1, holders - holders // 3)
    return needed if needed <= holders else None


def share_purpose(
    scope: MaskScope, survivors: Iterable[str], owner: str, drawn: Iterable[str]
) -> bytes:
    """Return what a share is bound to: the sum, who left it, and the neighbours that it drew."""
    names = sha256(signing_bytes("fedllm.names.v1", *sorted(set(drawn))))
    return signing_bytes("fedllm.share.v1", survivor_statement(scope, survivors), owner, names)
