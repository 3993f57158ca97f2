"""Sites' paths put together, and what a coalition learns of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attacks.coalitions.algebra import Equation, Unknown, follows, leaks
from attacks.coalitions.players import Given, all_shown, player
from attacks.coalitions.staging import Signed, Stage

from fedllm.encryption.masks import correction_for
from fedllm.encryption.reveals import Reveal
from fedllm.errors import FedllmError
from fedllm.federation.protocol.masks import mask_scope


@dataclass(frozen=True)
class Found:
    """What a search comes to.

    Attributes
    ----------
    target : str, optional
        A site of which the coalition learns something by itself.
    opened : bool
        Whether in some run it learns the sum of all honest sites, as it should.
    """

    target: str | None
    opened: bool


def search(stage: Stage, statements: Sequence[Signed], also: Sequence[str] = ()) -> Found:
    """Put the sites' paths together, until a single update shows.

    Beside training, settling and revealing under each statement, in every order, each once,
    ``also`` names what else is tried: "swap" parts of orders, "steal" signatures of survivors,
    "repeat" orders, "restore" a file of a site as it was before.
    """
    paths = {name: player(stage, name).paths(statements, also) for name in stage.honest}
    total: Equation = {("u", name, 0): 1 for name in stage.honest}
    opened = False
    for run in itertools.product(*paths.values()):
        known = list(_seen(stage, statements, dict(zip(stage.honest, run, strict=True))))
        opened = opened or follows(total, known)
        if target := leaks(known, stage.honest):
            return Found(target, opened)
    return Found(None, opened)


def _seen(
    stage: Stage, statements: Sequence[Signed], given: Mapping[str, Given]
) -> Iterator[Equation]:
    """Yield what a coalition knows after a run."""
    for signed in statements:
        for seed in signed.known:
            yield {("s", "", seed): 1}
    sums: dict[tuple[int, tuple[str, ...]], dict[str, Reveal]] = {}
    for site in given.values():
        yield from map(dict, site.updates)
    for name, shown in all_shown(given, stage.colluders):
        own, pairs = shown.reveal
        if stage.authority:
            for seed in (own, *dict(pairs).values()):
                yield {("s", "", seed): 1}
        else:
            reveal = Reveal(name, own, dict(pairs))
            sums.setdefault((shown.place, shown.survivors), {})[name] = reveal
    for (place, survivors), reveals in sums.items():
        if set(reveals) == set(survivors) & set(stage.honest):
            yield _corrections(stage, statements[place], survivors, reveals)


def _corrections(
    stage: Stage, signed: Signed, survivors: tuple[str, ...], reveals: Mapping[str, Reveal]
) -> Equation:
    """Return what an honest authority adds to a sum; colluding sites reveal nothing of weight."""
    scope = mask_scope(signed.statement, stage.plan)
    dropped = dict.fromkeys(set(scope.cohort) - set(survivors), bytes(32))
    empty = {n: Reveal(n, bytes(32), dropped) for n in survivors if n not in reveals}
    total: dict[Unknown, int] = {}
    with contextlib.suppress(FedllmError):
        for sign, seed in correction_for(scope, survivors, [*reveals.values(), *empty.values()]):
            if seed != bytes(32):
                total["s", "", seed] = total.get(("s", "", seed), 0) + sign
    return total
