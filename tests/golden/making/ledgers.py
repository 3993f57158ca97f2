"""Make the kept ledgers, what auditors get of them, and one of each privacy event."""

from __future__ import annotations

from math import inf
from pathlib import Path

from golden.kept import identity

from fedllm.canonical import canonical_json
from fedllm.files import append_line
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
from fedllm.privacy.ledger.charges import Carried
from fedllm.privacy.ledger.heads import keep_heads
from fedllm.privacy.ledger.ledger import Ledger

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
    """Write ``events.jsonl`` and ``ledger``."""
    for event in events():
        append_line(folder / "events" / "events.jsonl", canonical_json(to_json(event)).decode())
    _ledgers(folder / "ledger")


def _ledgers(folder: Path) -> None:
    ceiling = Ceiling(30.0, 1e-5, 60.0)
    first = Ledger.open(folder / "first.sqlite", SITE, identity(SITE))
    local = (PoissonGaussian(0.01, 1.25, 10),)
    distributed = (PoissonGaussian(0.05, 2.0, 1),), (PoissonGaussian(0.05, 1.0, 1),)
    grid = (discrete(False),), (discrete(True),)
    heads = {}
    charges = [
        Charge("local", 1, "", local, unit="person"),
        Charge("local", 1, "", local, unit="person", name="a run of Köln"),
        Charge("distributed", 1, "oncology", *distributed, delta=1e-6, unit="person"),
        Charge("discrete", 3, "surgery", *grid, unit="person"),
        Charge("local", 1, "", (Gaussian(12.5),), None, 1e-5, "evaluation", unit="person"),
    ]
    for number, charge in enumerate(charges, start=1):
        reserved = first.reserve(charge, ceiling)
        # The first attempt is never finished.
        if number > 1:
            first.commit(reserved)
        heads[number] = first.head()
    for number, head in heads.items():
        keep_heads(folder / "ledger_heads.jsonl", "kept", number, {SITE: head})
    export_ledger(folder / "first.sqlite", folder / "first.jsonl")

    second = Ledger.open(folder / "second.sqlite", SITE, identity("anne with new keys"))
    _, carried = spending_of(folder / "first.sqlite")
    second.carry(carried)
    covers = (identity("anne with lost keys").public_bytes().hex(),)
    second.carry([Carried(covers, "", "record", (Stated(2.0, 1e-7),), (NonPrivate(),))])
    for run in ("open", "open"):
        charge = Charge(run, 1, "", (NonPrivate(),))
        second.commit(second.reserve(charge, Ceiling(inf, 1e-5)))
