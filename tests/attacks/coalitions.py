"""What a coalition learns of single updates, found by trying: the search behind the trust table.

The sites are the shipped ones, with real statements, signatures, masks, ledgers and memories; only
what they would compute of records is left out. Each update and each seed of a mask is an unknown.
An update that a coalition can open is one linear equation between them, and so is a sum that an
honest key authority opens; what a member of the coalition holds, or was sent, is known. A coalition
has learned something of a single site when a combination of that site's updates alone is left.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.encryption.masks import Reveal, SiteMasks, survivor_statement
from fedllm.encryption.plan import make_plan
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.federation.coordinator.rounds import statement_of
from fedllm.federation.protocol.evaluating import sum_shape
from fedllm.federation.protocol.masks import mask_scope, reveal_purpose
from fedllm.federation.protocol.messages import (
    RoundStatement,
    Settle,
    SettleHeader,
    Train,
    TrainHeader,
    Unmask,
    UnmaskHeader,
    round_statement,
)
from fedllm.federation.protocol.statements import make_member
from fedllm.federation.site.data import Datasets
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site
from fedllm.federation.site.work import SiteWork
from fedllm.identity.sealing import SealingKey
from fedllm.mechanisms import LocalStatistics

Equation = Mapping[object, int]


@dataclass(frozen=True)
class Unknown:
    """One site's update in one training, or one seed."""

    kind: str
    name: str
    number: object


def leaks(known: Iterable[Equation], targets: Sequence[str]) -> str | None:
    """Return a site of which a combination of its own updates alone follows, or None."""
    equations = [dict(equation) for equation in known]
    for target in targets:

        def own(unknown: object, target: str = target) -> bool:
            return isinstance(unknown, Unknown) and (unknown.kind, unknown.name) == ("u", target)

        rows: list[dict[object, Fraction]] = []
        for equation in equations:
            row = {u: Fraction(c) for u, c in equation.items() if c}
            for pivot, kept in ((min(k, key=lambda u: (own(u), repr(u))), k) for k in rows):
                if pivot in row:
                    _subtract(row, kept, row[pivot] / kept[pivot])
            if row:
                pivot = min(row, key=lambda u: (own(u), repr(u)))
                for kept in rows:
                    if pivot in kept:
                        _subtract(kept, row, kept[pivot] / row[pivot])
                rows.append(row)
        if any(all(own(unknown) for unknown in row) for row in rows if row):
            return target
    return None


def _subtract(row: dict[object, Fraction], other: Equation, factor: Fraction) -> None:
    for unknown, value in list(other.items()):
        left = row.get(unknown, Fraction(0)) - factor * value
        row.pop(unknown, None)
        if left:
            row[unknown] = left


@dataclass
class Signed:
    """A statement of the search: what it says, and how it goes to the sites."""

    statement: RoundStatement
    signature: str
    config: str
    adapter: bytes

    @property
    def text(self) -> str:
        return self.statement.model_dump_json()


@dataclass
class Told:
    """Who is told what, and what of it: one run of the search."""

    trains: dict[str, tuple[tuple[int, bool], ...]]
    first: dict[str, tuple[str, ...]]
    doubled: bool = False


class Stage:
    """What every run shares: keys, roster, terms, the plan, and a round key for each statement."""

    def __init__(self, federation: Any, colluders: Sequence[str], authority: bool) -> None:
        self.federation, self.colluders, self.authority = federation, tuple(colluders), authority
        self.names = tuple(sorted(federation.sites))
        self.honest = tuple(name for name in self.names if name not in colluders)
        config = federation.config
        shape = sum_shape(config, "update", federation.terms.bounds)
        scheme = config.encryption.scheme
        self.plan = make_plan(scheme, shape.bits, len(self.names), shape.length, True)
        self.secret = SecretRoundKey.generate(self.plan)
        self.public = self.secret.public_context()
        self.sealing = SealingKey()
        self.adapter = federation.model().adapter().astype("<f4").tobytes()

    def signed(self, attempt: int = 1, config: str = "", **changes: Any) -> Signed:
        """Sign a statement, as an authority in league or an honest one would."""
        terms = self.federation.terms
        cohort = tuple(
            make_member(self.federation.identities[name], terms.run, 0) for name in self.names
        )
        text = config or terms.config_text
        changes = {
            "plan": self.plan.fingerprint(),
            "key": PublicRoundKey.from_bytes(self.plan, self.public).fingerprint,
            "reveal_key": self.sealing.public_bytes().hex(),
            **self._order(text, None).digests().model_dump(),
            **changes,
        }
        said = statement_of(terms, cohort, 1, attempt, None).model_copy(update=changes)
        authority = self.federation.identities["authority"]
        signature = authority.sign(round_statement(said.model_dump_json())).hex()
        return Signed(said, signature, text, self.adapter)

    def _order(self, config: str, signed: Signed | None, evil: bool = False) -> Train:
        terms = self.federation.terms
        adapter = self.adapter
        if evil:
            adapter = (np.frombuffer(adapter, dtype="<f4") + np.float32(1.0)).tobytes()
        header = TrainHeader(
            statement="" if signed is None else signed.text,
            signature="" if signed is None else signed.signature,
            config=config,
            labels=terms.labels,
            bounds=terms.bounds,
            model=terms.model,
        )
        return Train(header, self.plan.to_bytes(), self.public, adapter)


class Run:
    """One run: sites that were never used, and what the coalition has seen."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.known, self.sent = stage, list[Equation](), list[tuple[str, int, Any]]()
        self.sites = {name: self._site(folder, name) for name in stage.honest}

    def _site(self, folder: Path, name: str) -> Site:
        stage = self.stage
        files = SiteFiles(folder / f"{name}.sqlite", folder / f"{name}.json", folder / "log")
        minimum = stage.federation.config.rounds.min_sites
        return Site(
            identity=stage.federation.identities[name],
            roster=stage.federation.roster,
            policy=SitePolicy(
                budget=BudgetSection(epsilon=1e6),
                allow=AllowSection(
                    min_cohort=minimum, colluders=len(stage.colluders), non_private=True
                ),
            ),
            files=files,
            model_path=stage.federation.config.model.path,
            records=lambda task: [],
            models=stage.federation.models,
            full_errors=True,
        )

    def play(self, statements: Sequence[Signed], told: Told) -> None:
        """Have the sites train, settle and reveal, and take in what the coalition sees."""
        for place, signed in enumerate(statements):
            for name in self.stage.honest:
                for which, evil in told.trains[name]:
                    if which == place:
                        self._train(name, place, signed, evil)
        for place, signed in enumerate(statements):
            self._open(place, signed, told)

    def _train(self, name: str, place: int, signed: Signed, evil: bool) -> None:
        order = self.stage._order(signed.config, signed, evil)
        with pytest.MonkeyPatch.context() as patch:
            used: list[SiteMasks] = []
            right = SiteMasks.mask_for_update
            patch.setattr(
                SiteMasks, "mask_for_update", lambda masks: used.append(masks) or right(masks)
            )
            answer = self.sites[name].train(order)
        if answer.header.refusal is not None:
            return
        (masks,) = used
        update = Unknown("u", name, len(self.sent))
        # Nothing is left of an update under an adapter, or a configuration, made for it.
        null = evil or signed.config != self.stage.federation.terms.config_text
        equation = {} if null else {update: 1}
        for peer, seed in masks._pair_seeds.items():
            equation[Unknown("s", "", seed)] = 1 if name < peer else -1
            if peer in self.stage.colluders:
                self.known.append({Unknown("s", "", seed): 1})
        equation[Unknown("s", "", masks._own_seed)] = 1
        self.sent.append((name, place, equation))
        if self.stage.authority:
            self.known.append(equation)

    def _open(self, place: int, signed: Signed, told: Told) -> None:
        stage, statement = self.stage, signed.statement
        about = {"statement": signed.text, "signature": signed.signature}
        signatures: dict[tuple[str, tuple[str, ...]], str] = {}
        sets = [
            chosen
            for size in range(1, len(stage.names) + 1)
            for chosen in itertools.combinations(stage.names, size)
        ]
        for name in stage.honest:
            wanted = [told.first[name], *(s for s in sets if s != told.first[name])]
            for chosen in wanted:
                settle = Settle(SettleHeader(**about, survivors=chosen), stage.plan.to_bytes())
                answer = self.sites[name].settle(settle).header
                if answer.refusal is None:
                    signatures[name, chosen] = answer.signature
        scope = mask_scope(statement, stage.plan)
        for name in stage.colluders:
            for chosen in sets:
                words = survivor_statement(scope, chosen)
                signatures[name, chosen] = stage.federation.identities[name].sign(words).hex()
        opened = False
        for chosen in sets:
            if any((name, chosen) not in signatures for name in chosen):
                continue
            shown = tuple(signatures[name, chosen] for name in chosen)
            header = UnmaskHeader(**about, survivors=chosen, signatures=shown)
            reveals = {}
            for name in (name for name in chosen if name in stage.honest):
                answer = self.sites[name].unmask(Unmask(header, stage.plan.to_bytes())).header
                if answer.refusal is None:
                    reveals[name] = self._read(answer.reveal, statement, name)
            if stage.authority:
                for reveal in reveals.values():
                    for seed in (reveal.own_seed, *reveal.pair_seeds.values()):
                        self.known.append({Unknown("s", "", seed): 1})
            elif len(reveals) == len([n for n in chosen if n in stage.honest]) and not opened:
                # An honest authority opens one sum with a key, and not of too few.
                opened = len(chosen) >= statement.min_sites
                if opened:
                    self.known.append(self._total(place, chosen, reveals, told.doubled))

    def _read(self, sealed: str, statement: RoundStatement, name: str) -> Reveal:
        blob = self.stage.sealing.open(bytes.fromhex(sealed), reveal_purpose(statement, name))
        return Reveal.from_bytes(blob, mask_scope(statement, self.stage.plan))

    def _total(
        self, place: int, chosen: Sequence[str], reveals: Mapping[str, Reveal], doubled: bool
    ) -> Equation:
        total: dict[object, int] = {}

        def add(equation: Equation, factor: int = 1) -> None:
            for unknown, value in equation.items():
                total[unknown] = total.get(unknown, 0) + factor * value

        for name, of, equation in self.sent:
            if name in chosen and of == place:
                add(equation, 2 if doubled and name == chosen[0] else 1)
        for name, reveal in reveals.items():
            add({Unknown("s", "", reveal.own_seed): -1})
            for peer, seed in reveal.pair_seeds.items():
                add({Unknown("s", "", seed): -1 if name < peer else 1})
        return total


def nothing_computed(patch: pytest.MonkeyPatch) -> None:
    """Leave out what sites compute of records, and the encryption, which is not what is tried."""
    length = {}

    def train(self: SiteWork, order: Any, dataset: Any, noise: Any) -> Any:
        size = length.setdefault("size", order.method.up.length)
        return np.zeros(size, dtype=np.uint64), LocalStatistics(0.0, 0, 0, ())

    patch.setattr(SiteWork, "require_trainable", lambda *_: None)
    patch.setattr(SiteWork, "train", train)
    patch.setattr("fedllm.federation.site.site.encrypt_levels", lambda *_: b"")
    patch.setattr(Site, "_datasets", lambda *_: Datasets(None, None, ""))  # type: ignore[arg-type]
    patch.setattr(Site, "_require_data", lambda *_: None)


def runs(stage: Stage, variants: int) -> Iterator[Told]:
    """Every way to tell the sites: who trains under which statements, and whom each settles on.

    Sites are alike, so of runs that differ by their names alone one is tried.
    """
    trains = [((0, False),), ((0, True),)]
    if variants > 1:
        trains += [((1, False),), ((0, False), (1, False)), ((0, False), (0, False))]
    firsts = [chosen for size in (2, 3) for chosen in itertools.combinations(stage.names, size)]
    seen = set()
    for told in itertools.product(trains, repeat=len(stage.honest)):
        for first in itertools.product(firsts, repeat=len(stage.honest)):
            pairs = list(zip(stage.honest, told, first, strict=True))
            if any(name not in chosen for name, _, chosen in pairs):
                continue
            key = min(_renamed(pairs, stage, order) for order in _orders(stage))
            if key in seen:
                continue
            seen.add(key)
            yield Told({name: what for name, what, _ in pairs}, {name: s for name, _, s in pairs})


def _orders(stage: Stage) -> Iterator[dict[str, str]]:
    for order in itertools.permutations(stage.honest):
        yield {**dict(zip(stage.honest, order, strict=True)), **{c: c for c in stage.colluders}}


def _renamed(pairs: Any, stage: Stage, order: Mapping[str, str]) -> str:
    return repr(
        sorted(
            (order[name], what, sorted(order[s] for s in chosen)) for name, what, chosen in pairs
        )
    )


def search(
    stage: Stage, statements: Sequence[Signed], folders: Iterator[Path], limit: int | None = None
) -> str | None:
    """Try all runs under these statements; return the first in which a single update shows."""
    for number, told in enumerate(runs(stage, len(statements))):
        if limit is not None and number >= limit:
            return None
        run = Run(stage, next(folders))
        run.play(statements, told)
        if target := leaks(run.known, stage.honest):
            return f"{target}: {dataclasses.asdict(told)}"
    return None
