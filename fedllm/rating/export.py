"""The preference file that a run reads, from what raters said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fedllm.rating.rankings import dense, mid_ranks
from fedllm.rating.store import Rating

# One prompt and context, and one set of answers to it.
Group = list[Rating]


def groups(ratings: Sequence[Rating]) -> list[Group]:
    """Put rankings together that are of the same answers to the same prompt, about one person.

    Parameters
    ----------
    ratings : sequence of Rating
        What counts, see `fedllm.rating.store.latest`; those without ranks are left out.
    """
    found: dict[tuple[str, str, frozenset[str]], Group] = {}
    for rating in ratings:
        if rating.state == "ranked":
            key = (rating.unit, rating.person, frozenset(rating.answers))
            found.setdefault(key, []).append(rating)
    return list(found.values())


def aligned(group: Group) -> list[tuple[int, ...]]:
    """Return each rater's ranks in the order in which the first one's line has the answers."""
    wanted = group[0].answers
    return [
        tuple(dict(zip(one.answers, one.ranks, strict=True))[text] for text in wanted)
        for one in group
    ]


def preference_rows(ratings: Sequence[Rating], consensus: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each rater's ranking, or for each prompt one that all raters share.

    Rankings in which all answers are equally good prefer nothing, and are left out.

    Parameters
    ----------
    consensus : bool
        One row a prompt: answers by the mean of the raters' mid-ranks (Borda's count).
    """
    for group in groups(ratings):
        if consensus:
            found = [_row(group[0], _shared(aligned(group)), raters=len(group))]
        else:
            found = [_row(one, one.ranks, rater=one.rater) for one in group]
        yield from (row for row in found if len(set(row["ranks"])) > 1)


def _shared(rankings: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the ranks by the sum of mid-ranks; sums of halves are exact, so ties are seen."""
    return dense([sum(column) for column in zip(*map(mid_ranks, rankings), strict=True)])


def _row(rating: Rating, ranks: Sequence[int], **more: Any) -> dict[str, Any]:
    return {
        **({} if rating.id is None else {"id": rating.id}),
        **({"person": rating.person} if rating.person else {}),
        "prompt": rating.prompt,
        **({"context": rating.context} if rating.context else {}),
        "answers": list(rating.answers),
        "ranks": list(ranks),
        **more,
    }
