"""Small cohorts in which sites share masks with drawn neighbours alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from attacks.coalitions.algebra import Unknown
from attacks.coalitions.players import Given, Player, Shown, Standing
from attacks.coalitions.staging import Signed, Stage
from attacks.coalitions.telling import with_entries

from fedllm.encryption.sparse import MaskGraph, drawn_neighbours
from fedllm.federation.protocol import graphs, neighbours
from fedllm.federation.protocol.cohorts import CohortMember, CohortTree, Neighbourhood
from fedllm.federation.protocol.messages import Draw, SignedRound, Unmask, UnmaskHeader
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.site import site as site_module

Drawn = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Luck:
    """What the honest sites of a cohort draw, and how many may be missing."""

    drawn: Drawn
    missing: int = 0

    @property
    def graph(self) -> MaskGraph:
        """Return the numbers that stand in statements."""
        return MaskGraph(len(next(iter(self.drawn.values()))), self.missing)


def seed_that_draws(statement: RoundStatement, place: int, wanted: Sequence[int]) -> bytes:
    """Return a seed with which the site at a place draws these neighbours, among others if more."""
    for number in itertools.count():
        seed = number.to_bytes(32, "big")
        drawn = drawn_neighbours(
            seed, statement.digest, place, len(statement.cohort), statement.neighbours
        )
        if set(wanted) <= set(drawn):
            return seed
    raise AssertionError


class SparseStage(Stage):
    """A stage whose sites draw what a test wants; all else of a draw is what is shipped."""

    luck: Luck

    def lucky(self, patch: pytest.MonkeyPatch, luck: Luck) -> None:
        """Let sites draw so from now on: by chance they could."""
        self.luck = luck
        patch.setattr(graphs, "plan_graph", lambda *_: luck.graph)

        def seed(identity: Any, ledger: str, statement: RoundStatement) -> bytes:
            wanted = map(statement.cohort.index, luck.drawn[identity.name])
            place = statement.cohort.index(identity.name)
            return seed_that_draws(statement, place, tuple(wanted))

        patch.setattr(neighbours, "own_seed", seed)
        patch.setattr(site_module, "own_seed", seed)

    def arounds(
        self, statement: RoundStatement, members: Sequence[CohortMember]
    ) -> Mapping[str, Sequence[Neighbourhood]]:
        """Return what sites may be told: first what is right, then what they cannot tell from it.

        The coalition says of each site what it drew, but to that site itself.
        """
        tree, places = CohortTree(members), range(len(members))

        def told(place: int) -> Iterator[Neighbourhood]:
            drawn = self._drawn(statement, place)
            rest = [other for other in places if other not in (*drawn, place)]
            true = [other for other in rest if place in self._drawn(statement, other)]
            chosen = [
                list(some)
                for size in range(len(rest) + 1)
                for some in itertools.combinations(rest, size)
            ]
            if len(rest) > 2:
                chosen = [true, [], rest]
            chosen.sort(key=lambda some: some != true)
            own = self._own_seed(statement, place)
            for some in chosen:
                seeds = {place: own} | dict.fromkeys(drawn, "")
                seeds |= {other: seed_that_draws(statement, other, [place]).hex() for other in some}
                yield tree.open(place, seeds)

        return {
            members[place].name: tuple(told(place))
            for place in places
            if members[place].name in self.honest
        }

    def wrong(self, signed: Signed, name: str) -> Iterator[Neighbourhood]:
        """Return what a site should see is not right."""
        statement, tree = signed.statement, CohortTree(signed.members)
        place, right = statement.cohort.index(name), signed.arounds[name][0]
        drawn, own = self._drawn(statement, place), self._own_seed(statement, place)
        others = [other for other in range(len(statement.cohort)) if other != place]
        for out in drawn:
            left = {other: "" for other in drawn if other != out}
            yield tree.open(place, {place: own} | left)
        for others_drawn in itertools.combinations(others, statement.neighbours):
            seed = seed_that_draws(statement, place, others_drawn).hex()
            yield tree.open(place, {place: seed} | dict.fromkeys(others_drawn, ""))
        for other in set(others) - set(drawn):
            never = [out for out in others if out not in (place, other)][: statement.neighbours]
            if other in never or place in never:
                continue
            seed = seed_that_draws(statement, other, never).hex()
            seeds = {place: own} | dict.fromkeys(drawn, "")
            yield tree.open(place, seeds | {other: seed})
        for one in right.near:
            if one.place != place:
                entry = next(iter(self.entries(one.member.name).values()))
                yield with_entries(right, {one.place: entry})
        yield right.model_copy(update={"siblings": (*right.siblings, "00" * 32)})
        yield right.model_copy(update={"place": others[0]})

    def _drawn(self, statement: RoundStatement, place: int) -> tuple[int, ...]:
        drawn = self.luck.drawn.get(statement.cohort[place], ())
        return tuple(statement.cohort.index(name) for name in drawn)

    def _own_seed(self, statement: RoundStatement, place: int) -> str:
        return seed_that_draws(statement, place, self._drawn(statement, place)).hex()


class SparsePlayer(Player):
    """A site in a cohort with drawn neighbours."""

    stage: SparseStage

    def paths(self, statements: Sequence[Signed], also: Sequence[str]) -> list[Given]:
        """Let the site draw for each statement, in each order, and go on with those it drew for."""
        found: dict[Given, None] = {}
        begun = None
        for order in itertools.permutations(range(len(statements))):
            if begun is not None:
                self._write(begun)
            self.site._draws.__init__()
            self._usable = [place for place in order if self._draws_for(statements[place])]
            found |= dict.fromkeys(super().paths(statements, also))
            begun = self._first
        self._write(begun)
        return list(found)

    def _draws_for(self, signed: Signed) -> bool:
        header = self.site.draw(Draw(SignedRound(**signed.about))).header
        place = signed.statement.cohort.index(self.name)
        assert header.refusal or header.seed == self.stage._own_seed(signed.statement, place)
        return header.refusal is None

    def answering(self, signed: Signed, survivors: Sequence[str]) -> tuple[str, ...]:
        """Return those that the site drew."""
        return tuple(name for name in self.stage.luck.drawn[self.name] if name in survivors)

    def asked_of(self, owner: str, signed: Signed, survivors: Sequence[str]) -> tuple[str, ...]:
        """Return those that the other site drew."""
        return tuple(name for name in self.stage.luck.drawn[owner] if name in survivors)

    def _moves(
        self, statements: Sequence[Signed], also: Sequence[str]
    ) -> Iterator[tuple[str, Any]]:
        names = self.stage.names
        for place in self._usable:
            signed = statements[place]
            right, *others = signed.arounds[self.name]
            forged = others if "forge" in also else []
            wrong = [*self.stage.wrong(signed, self.name)] if "tell" in also else []
            yield f"train {place}", self._training(place, signed, right)
            for number, around in enumerate(forged + wrong):
                move = self._training(place, signed, around)
                # Once something was trained, they are all refused for one reason.
                yield (
                    f"train {place} told {number}",
                    lambda at, move=move: not at.moves and move(at),
                )
            least = max(2, signed.statement.min_sites)
            for size in range(least - 1, len(names) + 1):
                for chosen in itertools.combinations(names, size):
                    if self.name in chosen:
                        told = wrong if chosen == names else []
                        yield (
                            f"settle {place} {chosen}",
                            self._settling(place, signed, chosen, right),
                        )
                        yield (
                            f"recover {place} {chosen}",
                            self._recovering(place, signed, chosen, [right, *forged, *told]),
                        )
                        yield (
                            f"unmask {place} {chosen}",
                            self._unmasking(place, signed, chosen, [right, *forged, *told]),
                        )

    def _training(self, place: int, signed: Signed, around: Neighbourhood) -> Any:
        def move(at: Standing) -> Any:
            done = self.train(signed.ordered(around), False, at)
            if done is None:
                return None
            updates = frozenset(
                tuple(sorted((_of_statement(unknown, place), c) for unknown, c in one))
                for one in done[0].updates
            )
            # Each statement is another update here, and never the same one again.
            return Given(updates=updates), f"statement {place}"

        return move

    def _settling(
        self, place: int, signed: Signed, chosen: tuple[str, ...], around: Neighbourhood
    ) -> Any:
        return lambda at: self.settle(place, signed, chosen, around)

    def _recovering(
        self, place: int, signed: Signed, chosen: tuple[str, ...], arounds: Sequence[Neighbourhood]
    ) -> Any:
        """Ask for shares of a sum that was settled on, in every way."""

        def move(at: Standing) -> Any:
            if f"settle {place} {chosen}" not in at.moves:
                return None
            gained = Given()
            for around in arounds:
                done = self.recover(signed, chosen, around, False)
                # Of neighbours that the owner did not draw a share opens nothing.
                gained |= Given(
                    shares=frozenset(
                        share
                        for share in (done[0].shares if done else ())
                        if self._true(around, signed, share.owner)
                    )
                )
            stolen = self.recover(signed, chosen, arounds[0], True)
            gained |= stolen[0] if stolen else Given()
            return (gained, "") if gained.shares else None

        return move

    def _true(self, around: Neighbourhood, signed: Signed, owner: str) -> bool:
        place = signed.statement.cohort.index(owner)
        told = {one.place: one.seed for one in around.near}
        return told.get(place) == self.stage._own_seed(signed.statement, place)

    def _unmasking(
        self, place: int, signed: Signed, chosen: tuple[str, ...], arounds: Sequence[Neighbourhood]
    ) -> Any:
        """Ask for seeds; with a sum that was settled on, in every way."""

        def move(at: Standing) -> Any:
            settled = f"settle {place} {chosen}" in at.moves
            gained = Given()
            for around in arounds if settled else arounds[:1]:
                done = self.unmask(place, signed, chosen, around, False)
                gained |= done[0] if done else Given()
            if settled:
                stolen = self.unmask(place, signed, chosen, arounds[0], True)
                gained |= stolen[0] if stolen else Given()
                gained |= self._silent(place, signed, chosen, arounds[0])
            return (gained, "") if gained.shown else None

        return move

    def _silent(
        self, place: int, signed: Signed, chosen: tuple[str, ...], around: Neighbourhood
    ) -> Given:
        """Show no signature of an honest site, for seeds."""
        self._count()
        stage, words = self.stage, self.stage.words(signed, chosen)
        identities = stage.federation.identities
        shown = {
            name: identities[name].sign(words).hex()
            for name in self.answering(signed, chosen)
            if name in stage.colluders
        }
        header = UnmaskHeader(**signed.about, survivors=chosen, signatures=shown, around=around)
        answer = self.site.unmask(Unmask(header, signed.order.plan)).header
        if answer.refusal is not None:
            return Given()
        reveal = stage.reveal(answer.reveal, signed, self.name)
        pairs = tuple(sorted(reveal.pair_seeds.items()))
        seeds = Shown(words, chosen, place, (), (reveal.own_seed, pairs))
        return Given(shown=frozenset([seeds]))


def _of_statement(unknown: Unknown, place: int) -> Unknown:
    return ("u", unknown[1], place) if unknown[0] == "u" else unknown
