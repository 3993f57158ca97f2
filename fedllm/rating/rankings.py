"""A ranking as people write it, ``2 1=3 4``, and as numbers: 1 is best, equal is a tie."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

_SEPARATORS = " \t,>"


class RankingError(ValueError):
    """What is wrong with a ranking, in words for whoever wrote it."""


def parse_ranking(text: str, count: int) -> tuple[int, ...]:
    """Read a ranking of ``count`` answers.

    Parameters
    ----------
    text : str
        The answers' numbers, the best one first; ``=`` between two that are equally good. White
        space, ``,`` and ``>`` may stand between the others. Full-width digits and signs are read
        as plain ones.

    Returns
    -------
    tuple of int
        The rank of each answer, dense: 1 is best, and no number is left out.

    Raises
    ------
    RankingError
        If an answer is missing or there twice, or anything else stands there.
    """
    groups: list[list[int]] = []
    tied = False
    for letter in unicodedata.normalize("NFKC", text):
        if letter in _SEPARATORS:
            continue
        if letter == "=":
            if tied or not groups:
                raise RankingError("an = stands between two numbers")
            tied = True
        elif letter.isascii() and letter.isdigit() and 1 <= int(letter) <= count:
            if tied:
                groups[-1].append(int(letter))
            else:
                groups.append([int(letter)])
            tied = False
        else:
            raise RankingError(f"write the numbers 1 to {count}, the best one first, as 2 1=3")
    if tied:
        raise RankingError("an = stands between two numbers")
    _require_each_once([number for group in groups for number in group], count)
    ranks = {number: rank for rank, group in enumerate(groups, 1) for number in group}
    return tuple(ranks[number] for number in range(1, count + 1))


def _require_each_once(numbers: Sequence[int], count: int) -> None:
    counts = Counter(numbers)
    twice = [str(number) for number in sorted(counts) if counts[number] > 1]
    if twice:
        raise RankingError(f"{' and '.join(twice)} stands there more than once")
    missing = [str(number) for number in range(1, count + 1) if number not in counts]
    if missing:
        raise RankingError(f"{' and '.join(missing)} is missing: rank all {count} answers")


def ranking_text(ranks: Sequence[int]) -> str:
    """Return ranks as people write them; the reverse of `parse_ranking`."""
    groups: dict[int, list[str]] = {}
    for number, rank in enumerate(ranks, 1):
        groups.setdefault(rank, []).append(str(number))
    return " ".join("=".join(groups[rank]) for rank in sorted(groups))


def dense(values: Sequence[float]) -> tuple[int, ...]:
    """Return the ranks of values, the least of which is best: equal ones tie, none is left out."""
    places = {value: rank for rank, value in enumerate(sorted(set(values)), 1)}
    return tuple(places[value] for value in values)


def mid_ranks(ranks: Sequence[float]) -> tuple[float, ...]:
    """Return ranks in which tied answers share the mean of the places that they take.

    The sum is then the same for every ranking, so that ranks of several raters can be averaged.
    """
    below = {rank: sum(one < rank for one in ranks) for rank in ranks}
    equal = Counter(ranks)
    return tuple(below[rank] + (equal[rank] + 1) / 2 for rank in ranks)
