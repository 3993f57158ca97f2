"""What sparse masks promise, held against all that a coalition opens.

Whatever combination of updates follows: each site in it settled on survivors among which all but
a few of its drawn neighbours are, and every honest one of these is in it as often as the site.
So it consists of whole closed sets, as `fedllm.encryption.sparse.least_honest` counts them.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from attacks.coalitions.algebra import Equation, Unknown, left_without_streams
from attacks.coalitions.drawing import SparsePlayer, SparseStage
from attacks.coalitions.players import Given, all_shown, player
from attacks.coalitions.staging import Signed

Sum = tuple[int, tuple[str, ...]]
Updates = frozenset[tuple[tuple[Unknown, int], ...]]
Settled = Mapping[tuple[str, int], tuple[str, ...]]


@dataclass(frozen=True)
class Opened:
    """What a search comes to.

    Attributes
    ----------
    broken : str, optional
        What was opened that should not be.
    sets : frozenset of frozenset of str
        Honest sites whose sum was opened, in the first statement.
    """

    broken: str | None
    sets: frozenset[frozenset[str]]


def search_sparse(
    stage: SparseStage,
    statements: Sequence[Signed],
    also: Sequence[str] = (),
    most: int | None = None,
) -> Opened:
    """Put the sites' paths together, at most ``most`` of them, until something shows."""
    words = _all_words(stage, statements)
    paths = [
        _grouped(name, player(stage, name, SparsePlayer).paths(statements, also), words)
        for name in stage.honest
    ]
    known = {seed for signed in statements for seed in signed.known}
    sets = set[frozenset[str]]()
    for run in _runs(paths, most):
        settled = dict(one for path in run for one in path.settled)
        for updates in itertools.product(*_less(run, known | _shown(stage, run))):
            rows = left_without_streams(map(dict, itertools.chain(*updates)))
            if broken := _broken(stage, statements, settled, rows):
                return Opened(broken, frozenset(sets))
            for row in rows:
                if len({*row.values()}) == 1 and all(u[2] == 0 for u in row):
                    sets.add(frozenset(unknown[1] for unknown in row))
    return Opened(None, frozenset(sets))


def closed_sets(stage: SparseStage, least: int) -> frozenset[frozenset[str]]:
    """Return the sets of honest sites whose sums may be opened, with at least so many survivors."""
    found = set[frozenset[str]]()
    for survivors in _subsets(stage.names, least):
        honest = sorted({*survivors} - {*stage.colluders})
        for chosen in _subsets(honest, 1):
            drawn = [{*stage.luck.drawn[name]} for name in chosen]
            if all(
                len(some - {*survivors}) <= stage.luck.missing and some & {*honest} <= {*chosen}
                for some in drawn
            ):
                found.add(frozenset(chosen))
    return frozenset(found)


def _subsets(names: Sequence[str], least: int) -> Iterator[tuple[str, ...]]:
    for size in range(least, len(names) + 1):
        yield from itertools.combinations(names, size)


@dataclass(frozen=True)
class _Path:
    """What one site settled on and revealed, and the updates that it can have sent with that."""

    name: str
    settled: tuple[tuple[tuple[str, int], tuple[str, ...]], ...]
    given: Given
    updates: frozenset[Updates]


def _grouped(name: str, paths: Sequence[Given], words: Mapping[bytes, Sum]) -> list[_Path]:
    groups = defaultdict[Given, set[Updates]](set)
    for given in paths:
        groups[replace(given, updates=frozenset())].add(given.updates)
    return [
        _Path(
            name,
            tuple(((name, words[one][0]), words[one][1]) for one in given.signed),
            given,
            frozenset(updates),
        )
        for given, updates in groups.items()
    ]


def _all_words(stage: SparseStage, statements: Sequence[Signed]) -> dict[bytes, Sum]:
    return {
        stage.words(signed, chosen): (place, chosen)
        for place, signed in enumerate(statements)
        for chosen in _subsets(stage.names, 1)
    }


def _runs(paths: Sequence[Sequence[_Path]], most: int | None) -> Iterator[Sequence[_Path]]:
    count = math.prod(map(len, paths))
    if most is None or count <= most:
        yield from itertools.product(*paths)
    else:
        chance = random.Random(count)
        for _ in range(most):
            yield [chance.choice(some) for some in paths]


def _shown(stage: SparseStage, run: Sequence[_Path]) -> set[bytes]:
    """Return the seeds for which all who should have signed did."""
    given = {path.name: path.given for path in run}
    return {
        seed
        for _, shown in all_shown(given, stage.colluders)
        for seed in (shown.reveal[0], *dict(shown.reveal[1]).values())
    }


def _less(run: Sequence[_Path], known: set[bytes]) -> Iterator[set[Updates]]:
    """Yield, for each site, the different updates that are left without the known streams."""
    for path in run:
        yield {
            frozenset(
                tuple((unknown, c) for unknown, c in update if unknown[2] not in known)
                for update in updates
            )
            for updates in path.updates
        }


def _broken(
    stage: SparseStage,
    statements: Sequence[Signed],
    settled: Settled,
    rows: Sequence[Equation],
) -> str | None:
    """Return which site's update was opened otherwise than with all that it counts on."""
    parts = defaultdict[tuple[str, int], tuple[int, ...]](tuple[int, ...])
    for unknown in {unknown for row in rows for unknown in row}:
        parts[unknown[1], unknown[2]] = tuple(row.get(unknown, 0) for row in rows)
    for (name, place), part in parts.items():
        drawn = stage.luck.drawn[name]
        survivors = settled.get((name, place), ())
        if len(survivors) < max(2, statements[place].statement.min_sites):
            return f"{name} is in a sum of {len(survivors)}"
        if len(set(drawn) - set(survivors)) > stage.luck.missing:
            return f"{name} is in a sum without too many of those that it drew"
        for other in (set(drawn) & set(survivors)) - set(stage.colluders):
            if parts.get((other, place)) != part:
                return f"{name} is in a sum without {other}, which it drew"
            if settled.get((other, place)) != survivors:
                return f"{name} and {other} are in one sum and settled on two"
    return None
