"""What a coalition learns of single updates, found by trying: the search behind the trust table.

Each honest site is the shipped one, with a ledger, a memory, keys, statements and signatures of its
own, and is taken through every order of moves that a coalition has (`Stage.paths`): orders to
train under each statement, with parts exchanged; sums to settle on; seeds to reveal, on the
signatures of all survivors or on others' in their place; a move twice; a ledger or a memory as it
was before. Sites hear nothing of each other but those signatures, so what a run gives the coalition
is one path of each site put together, less the seeds for which a site of the sum never signed.

What is left out is what sites compute of records, and the expansion of seeds: each update and each
seed is an unknown, and every update that was sent is one equation between them, modulo the plain
modulus. A coalition has learned something of a single site when an equation in that site's updates
alone follows (`leaks`). An update counts as the same again where the same batch would be drawn, and
as nothing where the coalition had it made so.

Covered are the coalitions of the coordinator with sites, with and without the key authority, as
long as two honest sites are left. None of the others has more than the coordinator, who relays
everything. An honest authority signs what the shipped one signs. It opens one sum with each key;
here it takes the masks off every sum that the sites agree on, and the coalition reads all updates
by themselves, which is more.

Not covered: what follows from the sums themselves (adapters at which one site alone has gradients,
one adapter again with a site fewer), evaluation, runs without masks of sites' own, more statements
than a test names, how long an answer takes, and the mathematics below: X25519, HKDF, AES, Ed25519,
BFV.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedllm.canonical import sha256_hex
from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.encryption import masks as mask_streams
from fedllm.encryption.masks import Reveal, correction_for, survivor_statement
from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.errors import FedllmError
from fedllm.federation.authority.authority import Authority
from fedllm.federation.coordinator.rounds import statement_of
from fedllm.federation.protocol.evaluating import sum_shape
from fedllm.federation.protocol.masks import mask_scope, reveal_purpose, site_masks
from fedllm.federation.protocol.messages import (
    OpenRound,
    OpenRoundHeader,
    RoundStatement,
    Settle,
    SettleHeader,
    Train,
    TrainHeader,
    Unmask,
    UnmaskHeader,
    round_statement,
)
from fedllm.federation.protocol.statements import make_member, parse_statement
from fedllm.federation.site.data import Datasets
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site
from fedllm.federation.site.work import SiteWork, TrainingAtSite
from fedllm.identity.keys import Identity
from fedllm.identity.sealing import SealingKey
from fedllm.mechanisms import LocalResult, LocalStatistics
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.randomness import RandomStream

# An unknown: ("u", site, number) for an update, ("s", "", seed) for a stream of masks.
Unknown = tuple[str, str, Any]
Equation = Mapping[Unknown, int]
PRIME = (1 << 61) - 1
UNITS = 8
# Far above what a search of the tests takes: one that grows without end says so.
MOST_EXCHANGES = 60_000


# --- what follows ---------------------------------------------------------------------------------


def leaks(known: Iterable[Equation], targets: Sequence[str]) -> str | None:
    """Return a site of which a combination of its own updates alone follows, or None."""
    equations = list(known)
    for target in targets:
        # Everything else is eliminated first; what is left then speaks of the target alone.
        if any(_Rows(equations, lambda u, own=("u", target): u[:2] != own).left):
            return target
    return None


def follows(equation: Equation, known: Iterable[Equation]) -> bool:
    """Tell whether an equation follows from others."""
    return not _Rows(known, lambda unknown: True).reduced(equation)


class _Rows:
    """Equations in a triangle, each with an unknown of its own that ``may`` be eliminated.

    Attributes
    ----------
    left : list of dict
        Those in which there is none.
    """

    def __init__(self, equations: Iterable[Equation], may: Callable[[Unknown], bool]) -> None:
        self._rows: list[tuple[Unknown, Equation]] = []
        self.left: list[Equation] = []
        for equation in equations:
            row = self.reduced(equation)
            pivot = next((unknown for unknown in row if may(unknown)), None)
            if pivot is None:
                self.left.append(row)
            else:
                inverse = pow(row[pivot], -1, PRIME)
                self._rows.append((pivot, {u: c * inverse % PRIME for u, c in row.items()}))

    def reduced(self, equation: Equation) -> dict[Unknown, int]:
        """Return what is left of an equation."""
        row = {unknown: value % PRIME for unknown, value in equation.items() if value}
        for pivot, kept in self._rows:
            factor = row.get(pivot, 0)
            for unknown, value in kept.items() if factor else ():
                left = (row.get(unknown, 0) - factor * value) % PRIME
                if left:
                    row[unknown] = left
                else:
                    row.pop(unknown, None)
        return row


# --- what is recorded instead of computed ---------------------------------------------------------


class Recorder:
    """Stands for training and for streams of masks; see `nothing_computed`."""

    def __init__(self) -> None:
        self.adapter, self.update = b"", ""
        self.parts: list[tuple[int, bytes]] | None = None

    def expand(self, parts: Iterable[tuple[int, bytes]], plan: EncryptionPlan) -> Any:
        """Instead of the sum of streams, the list of them."""
        return list(parts)

    def result(self, sampling: RandomStream, length: int) -> LocalResult:
        """Note what the update would follow from: its batch and its adapter."""
        self.update = sha256_hex(sampling.uint64(4).tobytes() + self.adapter)
        zeros = np.zeros(length, dtype=np.float32)
        return LocalResult(zeros, LocalStatistics(0.0, 0, 0, ()), 1.0)

    def encrypt(self, levels: Any, plan: EncryptionPlan, key: PublicRoundKey, masks: Any) -> bytes:
        """Note the masks that are added."""
        self.parts = masks
        return b""


def nothing_computed(patch: pytest.MonkeyPatch) -> Recorder:
    """Leave out what sites compute of records, and the encryption, which is not what is tried."""
    recorder, keys = Recorder(), dict[bytes, PublicRoundKey]()
    read, work = PublicRoundKey.from_bytes, SiteWork.train

    def train(self: SiteWork, order: Any, *rest: Any) -> Any:
        recorder.adapter = order.adapter.tobytes()
        return work(self, order, *rest)

    def once(plan: EncryptionPlan, blob: bytes) -> PublicRoundKey:
        # Under one plan; TenSEAL takes milliseconds for each.
        return keys[blob] if blob in keys else keys.setdefault(blob, read(plan, blob))

    def recorded(self: TrainingAtSite, settings: Any, sampling: RandomStream, noise: Any) -> Any:
        return recorder.result(sampling, self.length)

    patch.setattr(PublicRoundKey, "from_bytes", once)
    patch.setattr(SiteWork, "require_trainable", lambda *_: None)
    patch.setattr(SiteWork, "train", train)
    patch.setattr(Site, "_datasets", lambda *_: Datasets(None, None, ""))  # type: ignore[arg-type]
    patch.setattr(Site, "_require_data", lambda *_: None)
    patch.setattr(TrainingAtSite, "units", property(lambda work: UNITS))
    patch.setattr(TrainingAtSite, "train", recorded)
    patch.setattr(mask_streams, "_expand", recorder.expand)
    patch.setattr("fedllm.federation.site.site.encrypt_levels", recorder.encrypt)
    return recorder


# --- what is signed -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signed:
    """A statement of the search, and what goes to the sites with it.

    Attributes
    ----------
    order : Train
        As it was signed.
    null : bool
        Whether nothing is left of an update that follows it.
    known : tuple of bytes
        Seeds that the colluding sites share with honest ones.
    """

    order: Train
    statement: RoundStatement
    null: bool
    known: tuple[bytes, ...]

    @property
    def about(self) -> dict[str, str]:
        """The statement and its signature, as every message has them."""
        header = self.order.header
        return {"statement": header.statement, "signature": header.signature}


class Stage:
    """What every run shares: keys, roster, terms, plan and round keys.

    Parameters
    ----------
    federation : Federation
        Keys, roster and terms are used; its sites are not.
    colluders : sequence of str
        Sites in league with the coordinator.
    authority : bool
        Whether the key authority is, too.
    expected : int, optional
        How many colluders the sites expect; as many as there are when left out.
    """

    def __init__(
        self,
        federation: Any,
        folder: Path,
        recorder: Recorder,
        colluders: Sequence[str] = (),
        authority: bool = False,
        expected: int | None = None,
    ) -> None:
        self.federation, self.recorder, self.authority = federation, recorder, authority
        self.colluders, self.names = tuple(colluders), tuple(sorted(federation.sites))
        self.honest = tuple(name for name in self.names if name not in colluders)
        config = federation.config
        shape = sum_shape(config, "update", federation.terms.bounds)
        scheme = config.encryption.scheme
        self.plan = make_plan(scheme, shape.bits, len(self.names), shape.length, True)
        self._secrets = [SecretRoundKey.generate(self.plan) for _ in range(2)]
        self._sealing = SealingKey()
        self._other_sealing = SealingKey()
        self._adapter = federation.model().adapter().astype("<f4").tobytes()
        # A colluding site may show another mask key in another statement.
        self._second = {
            name: Identity(name, federation.identities[name]._signing_key, os.urandom(32))
            for name in self.colluders
        }
        minimum = min(config.rounds.min_sites, 2)
        allow = AllowSection(
            min_cohort=minimum,
            colluders=len(self.colluders) if expected is None else expected,
            non_private=not config.private,
        )
        self.policy = SitePolicy(budget=BudgetSection(epsilon=1e6), allow=allow)
        self._folder, self.exchanges = folder, 0
        self._honest_authority = Authority(
            federation.identities["authority"],
            federation.roster,
            config.rounds.min_sites,
            make_key=lambda plan: self._secrets[0],
            full_errors=True,
        )

    # --- statements

    def signed(
        self,
        *,
        null: bool = False,
        config: str | None = None,
        adapter: bytes | None = None,
        cohort: Sequence[str] | None = None,
        other_key: bool = False,
        other_mask_keys: bool = False,
        **changes: Any,
    ) -> Signed:
        """Sign a statement as an authority in league does, or have the honest one sign it.

        Raises
        ------
        FedllmError
            If the honest authority refuses.
        """
        terms, identities = self.federation.terms, dict(self.federation.identities)
        if other_mask_keys:
            identities |= self._second
        units = UNITS if self.federation.config.private else 0
        chosen = self.names if cohort is None else tuple(cohort)
        ledgers = {name: self._ledger(name) for name in chosen}
        members = tuple(
            make_member(identities[name], ledgers[name], terms.run, units) for name in chosen
        )
        public = self._secrets[int(other_key)].public_context()
        header = TrainHeader(
            statement="",
            signature="",
            config=terms.config_text if config is None else config,
            labels=terms.labels,
            bounds=terms.bounds,
            model=terms.model,
        )
        order = Train(header, self.plan.to_bytes(), public, adapter or self._adapter)
        said = statement_of(terms, members, 1, 1, None).model_copy(
            update={"plan": self.plan.fingerprint(), **order.digests().model_dump(), **changes}
        )
        text, signature = self._sign(said, public)
        order = replace(
            order, header=header.model_copy(update={"statement": text, "signature": signature})
        )
        signed = parse_statement(text)
        known = {
            seed
            for name in set(chosen) & set(self.colluders)
            for peer, seed in site_masks(
                identities[name], ledgers[name], signed, self.plan, True
            )._pair_seeds.items()
        }
        return Signed(order, signed, null, tuple(sorted(known)))

    def _sign(self, said: RoundStatement, public: bytes) -> tuple[str, str]:
        if self.authority:
            keys = {
                "key": PublicRoundKey.from_bytes(self.plan, public).fingerprint,
                "reveal_key": self._sealing.public_bytes().hex(),
            }
            text = said.model_copy(
                update={name: value for name, value in keys.items() if not getattr(said, name)}
            ).model_dump_json()
            identity = self.federation.identities["authority"]
            return text, identity.sign(round_statement(text)).hex()
        with pytest.MonkeyPatch.context() as patch:
            # What the sites reveal is read here; nobody of the coalition can.
            patch.setattr("fedllm.federation.authority.authority.SealingKey", lambda: self._sealing)
            # The one key is used for every statement, and outlives them.
            patch.setattr(SecretRoundKey, "wipe", lambda key: None)
            asked = OpenRound(
                OpenRoundHeader(statement=said.model_dump_json()), self.plan.to_bytes()
            )
            header = self._honest_authority.open_round(asked).header
        if header.refusal is not None:
            raise header.refusal.to_error("the key authority")
        return header.statement, header.signature

    def other_reveal_key(self) -> str:
        """Return a second key of the authority, for which sites may be told to seal."""
        return self._other_sealing.public_bytes().hex()

    def null_adapter(self) -> bytes:
        """Return an adapter that stands for one at which nobody has gradients."""
        values = np.frombuffer(self._adapter, dtype="<f4") + np.float32(1.0)
        return bytes(values.tobytes())

    def quiet_configuration(self) -> str:
        """Return a configuration that stands for one under which nothing is learned."""
        return str(self.federation.terms.config_text).replace('name = "', 'name = "quiet-', 1)

    # --- one site

    def site(self, name: str) -> Player:
        """Return a site that was never used."""
        files = self._files(name)
        site = Site(
            identity=self.federation.identities[name],
            roster=self.federation.roster,
            policy=self.policy,
            files=files,
            model_path=self.federation.config.model.path,
            records=lambda task: [],
            models=self.federation.models,
            full_errors=True,
        )
        return Player(self, name, site, files)

    def _files(self, name: str) -> SiteFiles:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return SiteFiles(folder / "ledger.sqlite", folder / "memory.json", folder / "log")

    def _ledger(self, name: str) -> str:
        """Return the id of a site's ledger, which is begun now if it was not."""
        return Ledger.open(self._files(name).ledger, name, self.federation.identities[name]).id

    def reveal(self, sealed: str, signed: Signed, name: str) -> Reveal:
        """Read what a site sealed for the authority."""
        other = signed.statement.reveal_key == self.other_reveal_key()
        key = self._other_sealing if other else self._sealing
        blob = key.open(bytes.fromhex(sealed), reveal_purpose(signed.statement, name))
        return Reveal.from_bytes(blob, mask_scope(signed.statement, self.plan))

    def words(self, signed: Signed, survivors: Sequence[str]) -> bytes:
        """Return what survivors sign."""
        return survivor_statement(mask_scope(signed.statement, self.plan), survivors)


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


# --- the search -----------------------------------------------------------------------------------


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
    paths = {name: stage.site(name).paths(statements, also) for name in stage.honest}
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
    for name, site in given.items():
        yield from map(dict, site.updates)
        for shown in site.shown:
            if any(shown.words not in given[other].signed for other in shown.needs):
                continue
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
