"""Make the kept ledgers, what auditors get of them, and one of each privacy event."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

from golden.kept import identity, records, seed

from fedllm.canonical import canonical_json
from fedllm.files import append_line, write_bytes
from fedllm.privacy.accounting.events import (
    Event,
    Gaussian,
    NonPrivate,
    PoissonDiscreteGaussian,
    PoissonGaussian,
    Stated,
    to_json,
)
from fedllm.privacy.ledger.audit import export_ledger, spending_of
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.fingerprints import FingerprintKey, identify
from fedllm.privacy.ledger.heads import keep_heads
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.state import Carried

SITE = "anne"


def discrete(alone: bool) -> PoissonDiscreteGaussian:
    """Return an event of discrete noise, as a run with two honest sites writes it."""
    worth, shares = (1.4143740073360345, 1) if alone else (2.0, 2)
    return PoissonDiscreteGaussian(0.05, worth, 1, shares, 5283, 3730.66638261651, 40)


def events() -> list[Event]:
    """Return one event of each type, and the edges of their ranges."""
    return [
        PoissonGaussian(0.01, 1.25, 10),
        PoissonGaussian(1.0, 0.0, 0),
        Gaussian(12.5, 1),
        discrete(False),
        NonPrivate(),
        Stated(2.5, 1e-6),
    ]


def make(folder: Path) -> None:
    """Write ``events.jsonl``, ``fingerprints`` and ``ledger``."""
    for event in events():
        append_line(folder / "events" / "events.jsonl", canonical_json(to_json(event)).decode())
    _fingerprints(folder / "fingerprints")
    _ledgers(folder / "ledger", folder / "fingerprints")


def _fingerprints(folder: Path) -> None:
    rows = {
        "records.jsonl": [
            {"text": f"record {i}", "label": ("one", "two")[i % 2]} for i in range(6)
        ],
        "more.jsonl": [{"text": f"record {i}", "label": ("one", "two")[i % 2]} for i in (5, 6)],
        "persons.jsonl": [
            {"prompt": f"frage é {i}", "response": "yes", "who": f"person {i // 2}"}
            for i in range(5)
        ],
        "open.jsonl": [{"text": "nothing to hide"}],
    }
    for name, values in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in values)
        write_bytes(folder / name, text.encode())


def _ledgers(folder: Path, data: Path) -> None:
    key = FingerprintKey(seed("fingerprints"))
    ceiling = Ceiling(30.0, 1e-5, 60.0)
    first = Ledger.open(folder / "first.sqlite", SITE, identity(SITE))
    rows = identify(records(data / "records.jsonl"), key)
    more = identify(records(data / "more.jsonl"), key)
    persons = identify(records(data / "persons.jsonl", "who"), key, "person")
    bare = identify(records(data / "open.jsonl"), key)
    known = [first.register(one) for one in (rows, more, persons, bare)]
    local = (PoissonGaussian(0.01, 1.25, 10),)
    distributed = (PoissonGaussian(0.05, 2.0, 1),), (PoissonGaussian(0.05, 1.0, 1),)
    grid = (discrete(False),), (discrete(True),)
    heads = {}
    charges = [
        Charge("local", 1, known[0], local),
        Charge("local", 1, known[0], local),
        Charge("distributed", 1, known[0], *distributed, delta=1e-6),
        Charge("discrete", 3, known[1], *grid),
        Charge("local", 1, known[0], (Gaussian(12.5),), None, 1e-5, "evaluation"),
        Charge("persons", 1, known[2], local),
    ]
    for number, charge in enumerate(charges, start=1):
        reserved = first.reserve(charge, ceiling)
        # The first attempt is never finished.
        if number > 1:
            first.commit(reserved)
        heads[number] = first.head()
    for run in ("open", "open"):
        first.commit(first.reserve(Charge(run, 1, known[3], (NonPrivate(),)), Ceiling(inf, 1e-5)))
    for number, head in heads.items():
        keep_heads(folder / "ledger_heads.jsonl", "kept", number, {SITE: head})
    export_ledger(folder / "first.sqlite", folder / "first.jsonl")

    named = Ledger.open(folder / "named.sqlite", SITE, identity(SITE))
    bare = named.register(rows)
    for name in ("a run of Köln", ""):
        named.commit(named.reserve(Charge("named", 1, bare, local, name=name), ceiling))
    export_ledger(folder / "named.sqlite", folder / "named.jsonl")

    second = Ledger.open(folder / "second.sqlite", SITE, identity("anne with new keys"))
    _, carried = spending_of(folder / "first.sqlite")
    second.carry(carried)
    covers = (identity("anne with lost keys").public_bytes().hex(),)
    second.carry([Carried(covers, "", "record", (Stated(2.0, 1e-7),), (NonPrivate(),))])
    third = second.register(rows)
    second.commit(second.reserve(Charge("later", 1, third, local), Ceiling(inf, 1e-5)))
