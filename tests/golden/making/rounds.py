"""Make the kept rounds: a real federation's messages, and what each party wrote down."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from golden.kept import COHORT, MANY, identity, read, records
from golden.making.models import LABELS, WORDS
from support.federation import Federation, build

from fedllm.config import AllowSection, BudgetSection, RunConfig, SitePolicy, parse
from fedllm.data.records import Record
from fedllm.encryption.plan import make_plan
from fedllm.encryption.schemes import SecretRoundKey
from fedllm.federation.authority.authority import Authority
from fedllm.federation.authority.round_log import RoundLog
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.coordinator.rounds import run_round, statement_of
from fedllm.federation.protocol.cohorts import cohort_digest
from fedllm.federation.protocol.messages import (
    Draw,
    Drawn,
    DrawnHeader,
    Joined,
    JoinedHeader,
    Readied,
    Recovered,
    RecoveredHeader,
    RoundOpened,
    RoundOpenedHeader,
    Settled,
    SettledHeader,
    SignedRound,
    SiteAnswer,
    SumOpened,
    SumOpenedHeader,
    Train,
    Trained,
    TrainedHeader,
    Unmasked,
    UnmaskedHeader,
    Wire,
)
from fedllm.federation.protocol.neighbours import Neighbourhoods, own_seed
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.round_statement import round_statement
from fedllm.federation.protocol.statements import make_member, parse_statement
from fedllm.files import write_bytes, write_json
from fedllm.identity.keys import Identity
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.ledger.audit import export_ledger
from fedllm.privacy.ledger.heads import keep_heads
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.randomness import RandomStream


def round_config(scheme: str) -> RunConfig:
    """Return the run of the kept rounds: encrypted and masked, or neither."""
    values: dict[str, Any] = {
        "name": "kept",
        "task": "classification",
        "model": {"path": "model", "max_length": 16},
        "lora": {"rank": 1},
        "data": {"train": "train.jsonl", "labels": LABELS, "sites": 3},
        "rounds": {"count": 2},
        "training": {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.5},
        "encryption": {"scheme": scheme},
        "engine": {"threads": 1},
    }
    if scheme == "bfv":
        values["privacy"] = {"epsilon": 8.0, "noise": "distributed"}
        values["evaluation"] = {"every": 2, "holdout": 0.25}
    return parse(RunConfig, values, "golden")


def make(folder: Path) -> None:
    """Write ``keys``, ``round`` (encrypted and masked), ``round-in-clear`` and ``draw``."""
    for name in (*COHORT, "authority"):
        identity(name).save(folder / "keys" / name)
    # The configuration names the model; no path of this machine shall be kept.
    with contextlib.chdir(folder):
        _Recorder(folder / "round").make("bfv")
        _Recorder(folder / "round-in-clear").make("none")
    draw(folder / "draw", folder / "round")
    for name, message in refused().items():
        write_bytes(folder / "refusal" / f"{name}.json", message.to_wire()[0].encode())


class _Recorder:
    """Runs a federation and writes down what its parties say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prefix = ""
        self._authority: Authority | None = None
        self._index: dict[str, dict[str, str]] = {}

    def make(self, scheme: str) -> None:
        config = round_config(scheme)
        data = {name: self._records(name, place) for place, name in enumerate(COHORT)}
        policy = SitePolicy(
            budget=BudgetSection(epsilon=8.0, colluders_epsilon=64.0),
            allow=AllowSection(encryption="optional", non_private=True),
        )
        with mock.patch.object(Identity, "generate", identity):
            federation = build(self._folder / "sites", config, data, policy, full_errors=False)
        self._folder.joinpath("sites").mkdir()
        write_bytes(self._folder / "roster.json", federation.roster.to_json().encode())
        self._authority = Authority(
            federation.identities["authority"],
            federation.roster,
            config.rounds.min_sites,
            make_key=self._make_key,
            opened=RoundLog(self._folder / "rounds.jsonl", identity("authority")),
        )
        federation.tamper = self._on_the_way
        self._round(federation, 1, "update")
        if scheme == "bfv":
            self._round(federation, 2, "evaluation")
        self._finish(scheme)

    def _records(self, name: str, place: int) -> list[Record]:
        stream = RandomStream.seeded(place, "kept records")
        path = self._folder / "records" / f"{name}.jsonl"
        lines = []
        for number in range(12):
            words = [WORDS[int(i)] for i in stream.below(len(WORDS), 4)]
            row = {"text": " ".join([*words, str(number)]), "label": LABELS[number % 3]}
            lines.append(json.dumps(row) + "\n")
        write_bytes(path, "".join(lines).encode())
        return records(path)

    def _round(self, federation: Federation, number: int, purpose: str) -> None:
        update = purpose == "update"
        self._prefix = "" if update else "evaluation-"
        terms, roster = federation.terms, federation.roster
        cohort = gather_cohort(federation, terms, number, roster, print)
        noise = mechanism_of(terms.config).announced_noise(number, ()) if update else None
        statement = statement_of(terms, cohort, number, number, noise, purpose)
        adapter = federation.model().adapter()
        parties = (federation, self)
        outcome = run_round(*parties, terms, roster, statement, cohort, adapter, lambda *_: None)
        keep_heads(self._folder / "ledger_heads.jsonl", terms.run, number, outcome.heads)

    def _make_key(self, plan: Any) -> SecretRoundKey:
        key = SecretRoundKey.generate(plan)
        if plan.scheme != "none" and not self._prefix:
            # Public key, secret key, and neither Galois nor relinearisation keys.
            secret = key._context.serialize(True, True, False, False)
            write_bytes(self._folder / "secret_context.bin", secret)
        return key

    def open_round(self, request: Wire) -> Wire:
        assert self._authority is not None
        self._keep("OpenRound", request)
        answer = self._authority.open_round(request)
        self._keep("RoundOpened", answer)
        assert self._authority._sealing is not None
        if not self._prefix:
            private = self._authority._sealing._key.private_bytes_raw()
            write_bytes(self._folder / "sealing_key.bin", private)
        return answer

    def open_sum(self, request: Wire) -> Wire:
        assert self._authority is not None
        self._keep("OpenSum", request)
        answer = self._authority.open_sum(request)
        self._keep("SumOpened", answer)
        return answer

    def _on_the_way(self, kind: str, name: str, message: Wire) -> Wire | None:
        if not kind.endswith("request"):
            self._keep(f"{type(message).__name__}-{name}", message)
        elif name == COHORT[0]:
            self._keep(type(message).__name__, message)
        if isinstance(message, Train) and name == "carl" and not self._prefix:
            # carl is told of another model, refuses, and is not in the sum.
            header = message.header.model_copy(update={"model": "00" * 32})
            return replace(message, header=header)
        if isinstance(message, Unmasked) and name == "bob" and not self._prefix:
            # bob goes away, and anne has a share of what was left.
            return None
        return message

    def _keep(self, name: str, message: Wire) -> None:
        """Keep a header as it travels, and its blobs; those of an evaluation are left out."""
        if self._prefix:
            return
        header, blobs = message.to_wire()
        folder = self._folder / "messages"
        write_bytes(folder / f"{name}.json", header.encode())
        parts = {}
        for part, content in blobs.items():
            parts[part] = f"blobs/{hashlib.sha256(content).hexdigest()[:16]}.bin"
            write_bytes(folder / parts[part], content)
        self._index[name] = parts

    def _finish(self, scheme: str) -> None:
        write_json(self._folder / "messages" / "index.json", self._index)
        sites = self._folder / "sites"
        ids = {
            name: Ledger.open(sites / f"{name}.sqlite", name, identity(name)).id for name in COHORT
        }
        write_json(self._folder / "ledgers.json", ids)
        kept: tuple[str, ...] = ()
        if scheme == "bfv":
            kept = ("anne.sqlite", "anne.jsonl", "anne.json", "anne.log")
            export_ledger(sites / "anne.sqlite", sites / "anne.jsonl")
        for path in sites.iterdir():
            if path.name not in kept:
                path.unlink()
        if not kept:
            sites.rmdir()
            (self._folder / "ledger_heads.jsonl").unlink()
            (self._folder / "rounds.jsonl").unlink()


def draw(folder: Path, kept_round: Path) -> None:
    """Write the draw of neighbours in a cohort of a few sites, which has none of itself."""
    ledgers = {name: f"{place:064x}" for place, name in enumerate(MANY)}
    ledgers |= {name: read(kept_round / "ledgers.json")[name] for name in COHORT}
    members = [make_member(identity(name), ledgers[name], "run-1", 0) for name in MANY]
    told = parse_statement(read(kept_round / "messages" / "Train.json")["statement"])
    plan = make_plan("bfv", 16, len(MANY), 31, True).fingerprint()
    many = {"cohort": MANY, "members": cohort_digest(members), "plan": plan}
    statement = told.model_copy(update={"neighbours": 2, "missing": 1, "colluders": 1} | many)
    # Until anne has a neighbour that she did not draw.
    for attempt in itertools.count(3):
        statement = statement.model_copy(update={"attempt": attempt})
        seeds = {name: own_seed(identity(name), ledgers[name], statement).hex() for name in MANY}
        around = Neighbourhoods(statement, members, seeds).of("anne")
        if len(around.near) > 3:
            break
    text = statement.model_dump_json()
    signature = identity("authority").sign(round_statement(text)).hex()
    kept: dict[str, Wire] = {"Draw": Draw(SignedRound(statement=text, signature=signature))}
    for name in MANY:
        kept[f"Drawn-{name}"] = Drawn(DrawnHeader(site=name, seed=seeds[name]))
    for name, message in kept.items():
        write_bytes(folder / "messages" / f"{name}.json", message.to_wire()[0].encode())
    write_json(folder / "messages" / "index.json", {name: {} for name in kept})
    write_json(folder / "ledgers.json", ledgers)
    write_bytes(folder / "around-anne.json", around.model_dump_json().encode())


def refused() -> dict[str, Wire]:
    """Return each answer as it is sent when its sender refuses."""
    no = Refusal(kind="RefusedError", message="the policy forbids it", remedy="ask the site")
    return {
        "Joined": Joined(JoinedHeader(site="carl", refusal=no)),
        "Drawn": Drawn(DrawnHeader(site="carl", refusal=no)),
        "Trained": Trained(TrainedHeader(site="carl", refusal=no), b""),
        "Readied": Readied(SiteAnswer(site="carl", refusal=no)),
        "Settled": Settled(SettledHeader(site="carl", refusal=no), b""),
        "Unmasked": Unmasked(UnmaskedHeader(site="carl", refusal=no)),
        "Recovered": Recovered(RecoveredHeader(site="carl", refusal=no)),
        "RoundOpened": RoundOpened(RoundOpenedHeader(refusal=no), b""),
        "SumOpened": SumOpened(SumOpenedHeader(refusal=no), b""),
    }
