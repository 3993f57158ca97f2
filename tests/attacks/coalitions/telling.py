"""What a coalition can tell a site of its cohort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedllm.federation.protocol.cohorts import CohortMember, CohortTree, Neighbour, Neighbourhood
from fedllm.federation.protocol.round_statement import RoundStatement

if TYPE_CHECKING:
    from attacks.coalitions.staging import Stage


def arounds_of(
    stage: Stage, statement: RoundStatement, members: Sequence[CohortMember]
) -> dict[str, tuple[Neighbourhood, ...]]:
    """Return, for each honest site of a cohort, what is right and then what is not.

    Parts of the cohort come with the digests that lead to its own; other entries, and entries
    that changed places, with those that led from the right ones.
    """
    tree = CohortTree(members)
    everyone = range(len(members))

    def told(place: int) -> Iterator[Neighbourhood]:
        right = tree.open(place, dict.fromkeys(everyone, ""))
        yield right
        yield tree.open((place + 1) % len(members), dict.fromkeys(everyone, ""))
        yield right.model_copy(update={"siblings": ("00" * 32,)})
        others = [other for other in everyone if other != place]
        yield from (tree.open(place, dict.fromkeys({*others} - {out}, "")) for out in others)
        yield tree.open(place, {})
        yield with_entries(
            right, {a: members[b] for a, b in zip(others, others[::-1], strict=True)}
        )
        for other in others:
            for entry in stage.entries(members[other].name).values():
                yield with_entries(right, {other: entry})

    honest = [place for place in everyone if members[place].name in stage.honest]
    return {members[place].name: tuple(told(place)) for place in honest}


def with_entries(around: Neighbourhood, entries: dict[int, CohortMember]) -> Neighbourhood:
    """Return a neighbourhood with other entries at some places, or with places that it lacked."""
    near = {one.place: one for one in around.near}
    for place, member in entries.items():
        seed = near[place].seed if place in near else ""
        near[place] = Neighbour(place=place, member=member, seed=seed)
    return around.model_copy(update={"near": tuple(near[place] for place in sorted(near))})
