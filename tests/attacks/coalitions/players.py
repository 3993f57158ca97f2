"""One honest site, taken through every order of the moves that a coalition has."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attacks.coalitions.algebra import Unknown
from attacks.coalitions.staging import Signed, Stage

from fedllm.encryption.reveals import Reveal
from fedllm.federation.protocol.cohorts import Neighbourhood
from fedllm.federation.protocol.messages import (
    Recover,
    RecoverHeader,
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
# For a site that is not in a cohort.
NOBODY = Neighbourhood(place=0, near=())

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
class Left:
    """What a site left for a sum: it is shown with ``needed`` shares of its holders."""

    shown: Shown
    owner: str
    holders: tuple[str, ...]
    needed: int


@dataclass(frozen=True)
class Share:
    """A site's share of what another left, once all that are honest of ``needs`` have signed."""

    words: bytes
    owner: str
    holder: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """What one site gave on one path, in no order."""

    updates: frozenset[tuple[tuple[Unknown, int], ...]] = frozenset()
    signed: frozenset[bytes] = frozenset()
    shown: frozenset[Shown] = frozenset()
    left: frozenset[Left] = frozenset()
    shares: frozenset[Share] = frozenset()

    def _parts(self) -> tuple[frozenset[Any], ...]:
        return (self.updates, self.signed, self.shown, self.left, self.shares)

    def __or__(self, other: Given) -> Given:
        return Given(*(a | b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __le__(self, other: Given) -> bool:
        return all(a <= b for a, b in zip(self._parts(), other._parts(), strict=True))


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
        self._first: State = (None, None)
        self._tried: dict[tuple[State, tuple[str, ...], str], tuple[Any, State]] = {}

    # --- moves

    def _count(self) -> None:
        self.stage.exchanges += 1
        if self.stage.exchanges > MOST_EXCHANGES:
            raise RuntimeError("the search does not end")

    def train(self, order: Train, null: bool, at: Standing) -> tuple[Given, str] | None:
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

    def settle(
        self, place: int, signed: Signed, survivors: tuple[str, ...], around: Neighbourhood
    ) -> tuple[Given, str] | None:
        """Name a sum; return what it signs, and what it leaves."""
        self._count()
        recorder = self.stage.recorder
        recorder.left = None
        header = SettleHeader(**signed.about, survivors=survivors, around=around)
        answer = self.site.settle(Settle(header, signed.order.plan)).header
        if answer.refusal is not None:
            return None
        words, left = self.stage.words(signed, survivors), set()
        if recorder.left is not None:
            reveal, holders, needed = recorder.left
            shown = Shown(words, survivors, place, (), seeds_of(reveal))
            left.add(Left(shown, self.name, holders, needed))
        return Given(signed=frozenset([words]), left=frozenset(left)), ""

    def unmask(
        self,
        place: int,
        signed: Signed,
        survivors: tuple[str, ...],
        around: Neighbourhood,
        stolen: bool,
    ) -> tuple[Given, str] | None:
        """Show signatures, or with ``stolen`` the site's own in place of the others', for seeds."""
        self._count()
        stage = self.stage
        words, identities = stage.words(signed, survivors), stage.federation.identities
        own = identities[self.name].sign(words).hex()
        asked = self.answering(signed, survivors)
        right = {name: identities[name].sign(words).hex() for name in asked}
        honest = tuple(n for n in asked if n in stage.honest and n != self.name)
        shown = right | dict.fromkeys(honest, own) if stolen else right
        header = UnmaskHeader(**signed.about, survivors=survivors, signatures=shown, around=around)
        answer = self.site.unmask(Unmask(header, signed.order.plan)).header
        if answer.refusal is not None:
            return None
        reveal = stage.reveal(answer.reveal, signed, self.name)
        needs = () if stolen else honest
        return Given(shown=frozenset([Shown(words, survivors, place, needs, seeds_of(reveal))])), ""

    def recover(
        self, signed: Signed, survivors: tuple[str, ...], around: Neighbourhood, stolen: bool
    ) -> tuple[Given, str] | None:
        """Ask for its share of what each other honest site left; ``stolen`` as in `unmask`."""
        stage, shares = self.stage, set()
        words, identities = stage.words(signed, survivors), stage.federation.identities
        own = identities[self.name].sign(words).hex()
        for owner in stage.honest:
            if owner == self.name or owner not in survivors:
                continue
            self._count()
            asked = {owner, *self.asked_of(owner, signed, survivors)}
            others = [name for name in asked if name in stage.honest and name != self.name]
            shown = {name: identities[name].sign(words).hex() for name in sorted(asked)}
            shown |= dict.fromkeys(others, own) if stolen else {}
            about = {"survivors": survivors, "owners": (owner,), "signatures": shown}
            header = RecoverHeader(**signed.about, **about, around=around)
            if self.site.recover(Recover(header, signed.order.plan)).header.refusal is None:
                needs = () if stolen else tuple(sorted(others))
                shares.add(Share(words, owner, self.name, needs))
        return (Given(shares=frozenset(shares)), "") if shares else None

    def asked_of(self, owner: str, signed: Signed, survivors: Sequence[str]) -> tuple[str, ...]:
        """Return whose signatures another site asks for."""
        return tuple(survivors)

    def answering(self, signed: Signed, survivors: Sequence[str]) -> tuple[str, ...]:
        """Return whose signatures this site asks for."""
        return tuple(survivors)

    # --- paths

    def paths(self, statements: Sequence[Signed], also: Sequence[str]) -> list[Given]:
        """Try everything in every order, and return what it gave, where no path gave more."""
        found: list[Given] = []
        seen: dict[tuple[State, tuple[str, ...]], list[Given]] = {}
        # Its ledger is begun; else each first question would begin another one.
        self.site._account()
        self._first, self._tried = self._read(), {}
        waiting = [Standing(self._first)]
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
        for name, move in moves:
            if at.moves.count(name) >= (2 if twice and name.startswith("train") else 1):
                continue
            done, after = self._tried_from(at, name, move)
            if not done and after == at.state:
                continue
            given, batch = done or (Given(), "")
            if after == at.state and not batch:
                at.given |= given
                continue
            onward.append((name, after, given, batch))
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

    def _tried_from(self, at: Standing, name: str, move: Any) -> tuple[Any, State]:
        """Make a move, or remember what it gave from the same files."""
        key = (at.state, at.batches, name)
        if key not in self._tried:
            self._write(at.state)
            self._tried[key] = move(at), self._read()
        return self._tried[key]

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

        def training(order: Train, null: bool) -> Any:
            return lambda at: self.train(order, null, at)

        def settling(place: int, signed: Signed, chosen: tuple[str, ...], around: Any) -> Any:
            return lambda at: self.settle(place, signed, chosen, around)

        def recovering(signed: Signed, chosen: tuple[str, ...], around: Any, stolen: bool) -> Any:
            return lambda at: self.recover(signed, chosen, around, stolen)

        def unmasking(
            place: int, signed: Signed, chosen: tuple[str, ...], around: Any, stolen: bool
        ) -> Any:
            return lambda at: self.unmask(place, signed, chosen, around, stolen)

        for place, signed in enumerate(statements):
            right, *others = signed.arounds.get(self.name, (NOBODY,))
            yield f"train {place}", training(signed.ordered(right), signed.null)
            if "swap" in also:
                for number, order in enumerate(self._swapped(signed)):
                    swapped = signed.ordered(right, order)
                    yield f"train {place} swapped {number}", training(swapped, True)
            told = others if "tell" in also else []
            for number, around in enumerate(told):
                yield f"train {place} told {number}", training(signed.ordered(around), signed.null)
            for chosen in sets:
                yield f"settle {place} {chosen}", settling(place, signed, chosen, right)
                for number, around in enumerate(told):
                    yield (
                        f"settle {place} {chosen} told {number}",
                        settling(place, signed, chosen, around),
                    )
            for chosen in sets:
                yield f"unmask {place} {chosen}", unmasking(place, signed, chosen, right, False)
                yield f"recover {place} {chosen}", recovering(signed, chosen, right, False)
                if "steal" in also:
                    yield f"stolen {place} {chosen}", unmasking(place, signed, chosen, right, True)
                    yield f"stolen shares {place} {chosen}", recovering(signed, chosen, right, True)
                for number, around in enumerate(told):
                    yield (
                        f"unmask {place} {chosen} told {number}",
                        unmasking(place, signed, chosen, around, False),
                    )

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


def seeds_of(reveal: Reveal) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Return what a reveal holds, in a form that can be compared."""
    return reveal.own_seed, tuple(sorted(reveal.pair_seeds.items()))


def all_shown(given: Mapping[str, Given], colluders: Sequence[str]) -> Iterator[tuple[str, Shown]]:
    """Yield which seeds sites showed for a sum that all signed who should, or left for it."""
    for name, site in given.items():
        for shown in site.shown:
            if all(shown.words in given[other].signed for other in shown.needs):
                yield name, shown
    yield from _opened_by_shares(given, colluders)


def _opened_by_shares(
    given: Mapping[str, Given], colluders: Sequence[str]
) -> Iterator[tuple[str, Shown]]:
    """Yield what sites left, where enough of its holders are in league or gave their shares."""
    for owner, site in given.items():
        for left in site.left:
            theirs = [
                holder
                for holder in left.holders
                if holder in given
                and any(
                    (share.words, share.owner) == (left.shown.words, owner)
                    and all(share.words in given[name].signed for name in share.needs)
                    for share in given[holder].shares
                )
            ]
            if len(theirs) + len({*left.holders} & {*colluders}) >= left.needed:
                yield owner, left.shown


def player(stage: Stage, name: str, kind: type[Player] = Player) -> Player:
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
    return kind(stage, name, site, files)
