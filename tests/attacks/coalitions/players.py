"""One honest site, taken through every order of the moves that a coalition has."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attacks.coalitions.algebra import Unknown
from attacks.coalitions.staging import Signed, Stage

from fedllm.federation.protocol.messages import (
    Settle,
    SettleHeader,
    Train,
    Unmask,
    UnmaskHeader,
)
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site

# Far above what a search of the tests takes: one that grows without end says so.
MOST_EXCHANGES = 60_000

State = tuple[bytes | None, bytes | None]


@dataclass(frozen=True)
class Shown:
    """Seeds that a site reveals, once all that are honest in the sum have signed ``words``."""

    words: bytes
    survivors: tuple[str, ...]
    place: int
    needs: tuple[str, ...]
    reveal: tuple[bytes, tuple[tuple[str, bytes], ...]]


@dataclass(frozen=True)
class Given:
    """What one site gave on one path, in no order."""

    updates: frozenset[tuple[tuple[Unknown, int], ...]] = frozenset()
    signed: frozenset[bytes] = frozenset()
    shown: frozenset[Shown] = frozenset()

    def __or__(self, other: Given) -> Given:
        return Given(
            self.updates | other.updates, self.signed | other.signed, self.shown | other.shown
        )

    def __le__(self, other: Given) -> bool:
        mine = (self.updates, self.signed, self.shown)
        return all(
            a <= b for a, b in zip(mine, (other.updates, other.signed, other.shown), strict=True)
        )


@dataclass
class Standing:
    """Where a site is: its files, what it gave so far, and how it came there."""

    state: State
    given: Given = field(default_factory=Given)
    moves: tuple[str, ...] = ()
    before: tuple[State, ...] = ()
    batches: tuple[str, ...] = ()


class Player:
    """One honest site, and everything that a coalition can ask of it."""

    def __init__(self, stage: Stage, name: str, site: Site, files: SiteFiles) -> None:
        self.stage, self.name, self.site, self.files = stage, name, site, files

    # --- moves

    def _count(self) -> None:
        self.stage.exchanges += 1
        if self.stage.exchanges > MOST_EXCHANGES:
            raise RuntimeError("the search does not end")

    def train(
        self, signed: Signed, order: Train, null: bool, at: Standing
    ) -> tuple[Given, str] | None:
        """Order it to train; return the equation of its update."""
        self._count()
        recorder = self.stage.recorder
        recorder.parts, recorder.update = None, ""
        answer = self.site.train(order)
        if answer.header.refusal is not None:
            return None
        # Batches that were drawn by themselves differ between paths; only their order counts.
        batches = (*at.batches, recorder.update)
        number = batches.index(recorder.update)
        equation: dict[Unknown, int] = {} if null else {("u", self.name, number): 1}
        for sign, seed in recorder.parts or ():
            equation["s", "", seed] = equation.get(("s", "", seed), 0) + sign
        return Given(updates=frozenset([tuple(sorted(equation.items()))])), recorder.update

    def settle(self, signed: Signed, survivors: tuple[str, ...]) -> tuple[Given, str] | None:
        """Name a sum; return what it signs."""
        self._count()
        header = SettleHeader(**signed.about, survivors=survivors)
        answer = self.site.settle(Settle(header, signed.order.plan)).header
        if answer.refusal is not None:
            return None
        return Given(signed=frozenset([self.stage.words(signed, survivors)])), ""

    def unmask(
        self, place: int, signed: Signed, survivors: tuple[str, ...], stolen: bool
    ) -> tuple[Given, str] | None:
        """Show signatures, or with ``stolen`` the site's own in place of the others', for seeds."""
        self._count()
        stage = self.stage
        words, identities = stage.words(signed, survivors), stage.federation.identities
        own = identities[self.name].sign(words).hex()
        right = {name: identities[name].sign(words).hex() for name in survivors}
        honest = tuple(n for n in survivors if n in stage.honest and n != self.name)
        shown = right | dict.fromkeys(honest, own) if stolen else right
        header = UnmaskHeader(
            **signed.about, survivors=survivors, signatures=tuple(shown[n] for n in survivors)
        )
        answer = self.site.unmask(Unmask(header, signed.order.plan)).header
        if answer.refusal is not None:
            return None
        reveal = stage.reveal(answer.reveal, signed, self.name)
        pairs = tuple(sorted(reveal.pair_seeds.items()))
        seeds = Shown(words, survivors, place, () if stolen else honest, (reveal.own_seed, pairs))
        return Given(shown=frozenset([seeds])), ""

    # --- paths

    def paths(self, statements: Sequence[Signed], also: Sequence[str]) -> list[Given]:
        """Try everything in every order, and return what it gave, where no path gave more."""
        found: list[Given] = []
        seen: dict[tuple[State, tuple[str, ...]], list[Given]] = {}
        # Its ledger is begun; else each first question would begin another one.
        self.site._account()
        waiting = [Standing(self._read())]
        moves = list(self._moves(statements, also))
        later: list[Standing] = []
        while waiting or later:
            at = waiting.pop() if waiting else later.pop()
            # A second way to the same files, and to no more than the first one gave.
            known = seen.setdefault((at.state, at.batches), [])
            if not any(at.given <= given for given in known):
                waiting.extend(self._onward(at, moves, "repeat" in also, found))
                known.append(at.given)
                if "restore" in also and "restored" not in at.moves:
                    later += self._restored(at)
        found = list(dict.fromkeys(found))
        return [one for one in found if not any(one <= other for other in found if other != one)]

    def _onward(
        self, at: Standing, moves: Sequence[tuple[str, Any]], twice: bool, found: list[Given]
    ) -> list[Standing]:
        """Make every move from one place; what leaves the site as it was is taken in at once."""
        onward: list[tuple[str, State, Given, str]] = []
        self._write(at.state)
        for name, move in moves:
            if at.moves.count(name) >= (2 if twice and name.startswith("train") else 1):
                continue
            done = move(at)
            after = self._read()
            if done is None and after == at.state:
                continue
            given, batch = done or (Given(), "")
            if after == at.state and not batch:
                at.given |= given
                continue
            onward.append((name, after, given, batch))
            self._write(at.state)
        result = [
            Standing(
                after,
                at.given | given,
                (*at.moves, name),
                (*at.before, at.state),
                (*at.batches, batch) if batch and batch not in at.batches else at.batches,
            )
            for name, after, given, batch in onward
        ]
        if not onward:
            found.append(at.given)
        return result

    def _restored(self, at: Standing) -> list[Standing]:
        """Put back what its memory was, or its ledger; both at once nobody at the site can tell."""
        ledger, memory = at.state
        older = dict.fromkeys([*at.before, (None, None)])
        states = [(ledger, old) for _, old in older if old != memory]
        states += [(old, memory) for old, _ in older if old != ledger]
        moves = (*at.moves, "restored")
        return [
            Standing(state, at.given, moves, at.before, at.batches)
            for state in dict.fromkeys(states)
            if state != (None, None)
        ]

    def _moves(
        self, statements: Sequence[Signed], also: Sequence[str]
    ) -> Iterator[tuple[str, Any]]:
        stage = self.stage
        sets = [
            chosen
            for size in range(1, len(stage.names) + 1)
            for chosen in itertools.combinations(stage.names, size)
            if self.name in chosen
        ]

        def training(signed: Signed, order: Train, null: bool) -> Any:
            return lambda at: self.train(signed, order, null, at)

        def settling(signed: Signed, chosen: tuple[str, ...]) -> Any:
            return lambda at: self.settle(signed, chosen)

        def unmasking(place: int, signed: Signed, chosen: tuple[str, ...], stolen: bool) -> Any:
            return lambda at: self.unmask(place, signed, chosen, stolen)

        for place, signed in enumerate(statements):
            yield f"train {place}", training(signed, signed.order, signed.null)
            if "swap" in also:
                for number, order in enumerate(self._swapped(signed)):
                    yield f"train {place} swapped {number}", training(signed, order, True)
            for chosen in sets:
                yield f"settle {place} {chosen}", settling(signed, chosen)
            for chosen in sets:
                yield f"unmask {place} {chosen}", unmasking(place, signed, chosen, False)
                if "steal" in also:
                    yield f"stolen {place} {chosen}", unmasking(place, signed, chosen, True)

    def _swapped(self, signed: Signed) -> Iterator[Train]:
        """Exchange each part of an order for one that could silence a site."""
        order, header = signed.order, signed.order.header
        yield replace(order, adapter=self.stage.null_adapter())
        for changes in (
            {"config": self.stage.quiet_configuration()},
            {"labels": header.labels[::-1]},
            {"bounds": tuple((size, 2 * bound) for size, bound in header.bounds)},
        ):
            yield replace(order, header=header.model_copy(update=changes))

    # --- files

    def _read(self) -> State:
        return tuple(  # type: ignore[return-value]
            path.read_bytes() if path.exists() else None
            for path in (self.files.ledger, self.files.memory)
        )

    def _write(self, state: State) -> None:
        if self._read() == state:
            return
        for path, content in zip((self.files.ledger, self.files.memory), state, strict=True):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            if content is not None:
                path.write_bytes(content)
        # As after a restart.
        self.site._opened = None


def player(stage: Stage, name: str) -> Player:
    """Return a site that was never used."""
    files = stage.files(name)
    site = Site(
        identity=stage.federation.identities[name],
        roster=stage.federation.roster,
        policy=stage.policy,
        files=files,
        model_path=stage.federation.config.model.path,
        records=lambda task: [],
        models=stage.federation.models,
        full_errors=True,
    )
    return Player(stage, name, site, files)
