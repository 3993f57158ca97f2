"""A small federation without Flower: sites, authority and coordinator as plain objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedllm.config import AllowSection, BudgetSection, RunConfig, SitePolicy, parse
from fedllm.data.records import Record
from fedllm.encryption.sparse import drawn_neighbours
from fedllm.errors import PeerError
from fedllm.federation.authority.authority import Authority
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.coordinator.rounds import (
    RoundOutcome,
    run_round,
    statement_of,
)
from fedllm.federation.protocol import neighbours
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.messages import Settle, Train, Unmask, Wire
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import parse_statement
from fedllm.federation.protocol.terms import Terms, make_terms
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.randomness import RandomStream
from fedllm.tasks.cache import ModelCache

WORDS = ("card", "cash", "bank", "loan", "rate", "fee", "pay", "send")
LABELS = ("one", "two", "three")


def records(count: int, seed: int = 0, unit: Callable[[int], str | None] = lambda i: None):
    """Make records whose label stands in the text, among other words."""
    stream = RandomStream.seeded(seed, "records")
    result = []
    for i in range(count):
        label = int(stream.below(3, 1)[0])
        words = [WORDS[j] for j in stream.below(len(WORDS), 5)]
        text = " ".join([("lost", "open", "close")[label], *words])
        values = {"text": text, "label": LABELS[label]}
        result.append(Record(values, unit(i), None, f"made up:{i}"))
    return result


def write_jsonl(path: Path, rows: list[Record]) -> Path:
    """Write records as JSON Lines."""
    path.write_text("".join(json.dumps(dict(row.values)) + "\n" for row in rows))
    return path


def config_values(checkpoint: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Return a small run's configuration, ``sections`` laid over it; no recipe fills it."""
    values: dict[str, Any] = {
        "name": "small",
        "task": "classification",
        "model": {
            "path": str(checkpoint),
            "max_length": 16,
            "head_start": "zero",
            "feature_center": "zero",
        },
        "lora": {"rank": 2},
        "data": {"train": "train.jsonl", "labels": list(LABELS), "sites": 3},
        "rounds": {"count": 2, "optimizer": "average"},
        "training": {"local_steps": 2, "batch_size": 8, "learning_rate": 0.01},
        "privacy": {"noise": "local"},
        "engine": {"threads": 1},
    }
    for name, section in sections.items():
        if isinstance(section, dict):
            values[name] = {**values.get(name, {}), **section}
        else:
            values[name] = section
    return values


def small_config(checkpoint: Path, **sections: Any) -> RunConfig:
    """Return a small run, ``sections`` laid over it."""
    return parse(RunConfig, config_values(checkpoint, **sections), "test")


@dataclass
class Federation:
    """Sites in one process; ``tamper`` may change or replace any message on the way."""

    config: RunConfig
    folder: Path
    sites: dict[str, Site]
    identities: dict[str, Identity]
    roster: Roster
    authority: Authority
    terms: Terms
    models: ModelCache
    tamper: Callable[[str, str, Wire], Wire | None] = lambda kind, name, message: message
    heard: list[tuple[str, str]] = field(default_factory=list)
    adapter: np.ndarray | None = None

    # The Sites protocol of the coordinator.
    def admit(self, node: str, name: str) -> None:
        """Nodes already have the names of sites."""

    def changed(self) -> bool:
        """Tell whether sites came or went: none do."""
        return False

    def join(self, request: Wire) -> Iterator[tuple[str, Any]]:
        yield from self._ask("join", lambda name: request, tuple(self.sites))

    def draw(self, request: Wire, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        yield from self._ask("draw", lambda name: request, names)

    def train(
        self, order: Callable[[str], Wire], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        yield from self._ask("train", order, names)

    def ready(self, request: Wire, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        yield from self._ask("ready", lambda name: request, names)

    def settle(
        self, question: Callable[[str], Wire], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        yield from self._ask("settle", question, names)

    def unmask(
        self, question: Callable[[str], Wire], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        yield from self._ask("unmask", question, names)

    def recover(
        self, question: Callable[[str], Wire], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        yield from self._ask("recover", question, names)

    def _ask(
        self, kind: str, request: Callable[[str], Wire], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        for name in names:
            self.heard.append((kind, name))
            asked = self.tamper(f"{kind} request", name, request(name))
            answer = getattr(self.sites[name], kind)(asked) if asked is not None else None
            answer = self.tamper(kind, name, answer) if answer is not None else None
            yield name, PeerError(f"{name}: no answer") if answer is None else answer

    def model(self):
        return self.models.get(self.config, self.terms.labels)

    def ledger_id(self, name: str) -> str:
        """Return the id of a site's ledger."""
        path = self.folder / f"{name}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        return Ledger.open(path, name, self.identities[name]).id

    def round(self, number: int = 1, attempt: int = 1, **changes: Any) -> RoundOutcome:
        """Run one round from the model's present adapter."""
        cohort = gather_cohort(self, self.terms, number, self.roster, lambda text: None)
        noise = changes.pop("noise_multiplier", None)
        statement = statement_of(self.terms, cohort, number, attempt, noise)
        return self.run(statement.model_copy(update=changes), cohort)

    def run(self, statement: RoundStatement, cohort: Sequence[CohortMember]) -> RoundOutcome:
        """Run the round of a statement from the model's present adapter."""
        adapter = self.model().adapter() if self.adapter is None else self.adapter
        return run_round(
            self,
            self.authority,
            self.terms,
            self.roster,
            statement,
            cohort,
            adapter,
            lambda *_: None,
        )


def own_draw(identity: Identity, ledger: str, statement: RoundStatement) -> tuple[str, ...]:
    """Return the neighbours that a site draws from a large cohort that it is in, by name."""
    place = statement.cohort.index(identity.name)
    seed = neighbours.own_seed(identity, ledger, statement)
    about = (statement.digest, place, len(statement.cohort), statement.neighbours)
    return tuple(statement.cohort[other] for other in drawn_neighbours(seed, *about))


def addressed(message: Train | Settle | Unmask, name: str) -> Any:
    """Return an order or a question as another site of a cohort without drawn neighbours has it."""
    place = parse_statement(message.header.statement).cohort.index(name)
    around = message.header.around.model_copy(update={"place": place})
    return replace(message, header=message.header.model_copy(update={"around": around}))


def build(
    folder: Path,
    config: RunConfig,
    data: dict[str, list[Record]] | None = None,
    policy: SitePolicy | None = None,
    full_errors: bool = True,
    identities: dict[str, Identity] | None = None,
    states: bool = False,
) -> Federation:
    """Make a federation with keys, ledgers and records of its own; perhaps with sites' states."""
    data = data or {f"site-{i}": records(40, seed=i) for i in range(3)}
    identities = identities or {name: Identity.generate(name) for name in (*data, "authority")}
    keys = {name: identities[name].public_bytes() for name in data}
    roster = Roster(identities["authority"].public_bytes(), keys)
    models = ModelCache()
    policy = policy or SitePolicy(
        budget=BudgetSection(epsilon=1e6, delta=config.privacy.delta),
        allow=AllowSection(min_cohort=1, encryption="optional", masks="optional", non_private=True),
    )
    sites = {
        name: Site(
            identity=identities[name],
            roster=roster,
            policy=policy,
            files=SiteFiles(
                folder / f"{name}.sqlite",
                folder / f"{name}.json",
                folder / f"{name}.log",
                state=folder / f"{name}-state" if states else None,
            ),
            model_path=config.model.path,
            records=lambda task, rows=rows: rows,
            models=models,
            full_errors=full_errors,
        )
        for name, rows in data.items()
    }
    model = models.get(config, LABELS if config.task == "classification" else ())
    terms = make_terms(config, model, "run-1")
    authority = Authority(
        identities["authority"], roster, config.rounds.min_sites, full_errors=full_errors
    )
    return Federation(config, folder, sites, identities, roster, authority, terms, models)


def plain_means(
    federation: Federation, names: list[str] | None = None, number: int = 1, attempt: int = 1
):
    """Train each site in the open with the same random numbers and average: the oracle."""
    from support.tasks import encode

    from fedllm.mechanisms import mechanism_of
    from fedllm.training.local import train_locally

    model, config = federation.model(), federation.config
    updates = []
    for name in names or sorted(federation.sites):
        rows = federation.sites[name]._data.records(config.task)
        dataset = encode(rows, config.task, model.tokenizer, config.model.max_length, model.labels)
        settings = mechanism_of(config).settings(dataset.number_of_units, None)
        sampling = RandomStream.seeded(config.seed, "sampling", name, number, attempt)
        result = train_locally(model, dataset, settings, sampling, RandomStream.secure())
        updates.append(result.update.astype(np.float64))
    return np.mean(updates, axis=0)


def quantisation_step(federation: Federation) -> np.ndarray:
    """Return the distance of levels for each coordinate."""
    from fedllm.encryption.quantise import Quantiser

    return Quantiser(federation.terms.bounds, federation.config.encryption.bits).step
