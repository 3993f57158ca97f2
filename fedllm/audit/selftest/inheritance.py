"""Checks of what was spent before: in other runs, under lost keys, in no ledger at all.

Each looks at a site from outside: a run that fits without that spending must be refused with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from fedllm.audit.selftest.accountant import epsilon_of, mu_squared_of, noise_for
from fedllm.audit.selftest.attempts import SHARED, failing, joins, one_round, pay
from fedllm.audit.selftest.building import Setting, build, new_identities, records_of
from fedllm.audit.selftest.federation import RUN, Federation
from fedllm.audit.selftest.material import SITES, Kind, Material
from fedllm.config import BudgetSection
from fedllm.data.records import Record
from fedllm.errors import TrainingError
from fedllm.federation.site.carrying import Statement, carry_ledger, carry_statement
from fedllm.files import write_json
from fedllm.identity.keys import Identity
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.accounting.events import PoissonGaussian
from fedllm.privacy.ledger.budget import Ceiling
from fedllm.privacy.ledger.charges import Reservation, reservation_body
from fedllm.privacy.ledger.entries import make_entry
from fedllm.privacy.ledger.fingerprints import DatasetIdentity
from fedllm.privacy.ledger.store import Store

_NAME, _DELTA, _EPSILON = SITES[0], 1e-5, 2.0
_COUNT = 10


def everything_is_charged(material: Material, all_cases: bool = True) -> str | None:
    """All that a site was ever charged counts for every later run, whatever it is made on."""
    some, others = records_of("first", count=_COUNT), records_of("second", count=_COUNT)
    one, two = _Run(_named(some, "a")), _Run(_named(others, "b"))
    first = _Run(some)
    refused = {
        "the same records": (first, first),
        "other records": (first, _Run(others)),
        "another file": (first, _Run([replace(r, origin="elsewhere:1") for r in some])),
        "another task": (first, _Run(others, "llama")),
        "other persons": (one, two),
        "an account after charges without one": (one, replace(two, account="b")),
        "no account after charges of one": (replace(one, account="a"), two),
        "the same account": (replace(one, account="a"), replace(two, account="a")),
    }
    quick = (
        "another task",
        "an account after charges without one",
        "no account after charges of one",
    )
    for what in refused if all_cases else quick:
        if problem := _twice(material, *refused[what], fits=False):
            return f"{what}: {problem}"
    apart = replace(one, account="a"), replace(two, account="b")
    return (
        _twice(material, *apart, fits=True)
        or _another_unit(material, first, one)
        or _of_before(material, first)
    )


def _named(records: list[Record], prefix: str) -> list[Record]:
    return [replace(record, unit=f"{prefix} {i // 2}") for i, record in enumerate(records)]


@dataclass(frozen=True)
class _Run:
    """What a run of one round is made on."""

    records: list[Record]
    kind: Kind = "bert"
    account: str | None = None


@dataclass
class _Ledger:
    """One site's keys and files, used by run after run."""

    material: Material
    ceiling: float
    identities: dict[str, Identity] = field(default_factory=new_identities)
    runs: int = 0

    def __post_init__(self) -> None:
        self.folder: Path = self.material.new_folder()

    def begin(self, run: _Run) -> Federation:
        """Begin a run."""
        self.runs += 1
        config = one_round(self.material, _EPSILON, kind=run.kind)
        if run.records[0].unit is not None:
            data = config.data.model_copy(update={"unit": "person"})
            config = config.model_copy(update={"data": data})
        records = run.records
        if run.kind == "llama":
            records = records_of("second", config.task, count=_COUNT)
        setting = Setting(
            identities=self.identities,
            budget=BudgetSection(epsilon=self.ceiling, account=run.account),
            folder=self.folder,
            run=f"{RUN}-{self.runs}",
            records=lambda name: records,
        )
        return build(self.material, config, setting)


def _ceiling(runs: int) -> float:
    """Return a ceiling for so many runs of one round and no more."""
    each = mu_squared_of(_EPSILON, _DELTA)
    fits, exceeds = (epsilon_of(n * each, _DELTA) for n in (runs, runs + 1))
    return (fits + exceeds) / 2


def _twice(material: Material, first: _Run, second: _Run, fits: bool) -> str | None:
    ledger = _Ledger(material, _ceiling(1))
    if not pay(ledger.begin(first)):
        return "a run below the ceiling was refused"
    after = ledger.begin(second)
    if fits:
        return None if joins(after) and pay(after) else "accounts that share nobody share a ceiling"
    return _refused(after, "a second run above the ceiling was taken")


def _refused(federation: Federation, problem: str) -> str | None:
    if joins(federation) or pay(federation):
        return problem
    return None


def _another_unit(material: Material, records: _Run, persons: _Run) -> str | None:
    """What was promised to single records bounds nothing for persons, nor the other way round."""
    for first, second in ((records, persons), (persons, records)):
        ledger = _Ledger(material, 1e5)
        if not pay(ledger.begin(first)):
            return "a run below the ceiling was refused"
        if problem := _refused(ledger.begin(second), "another unit of privacy was taken"):
            return problem
    return None


def _of_before(material: Material, run: _Run) -> str | None:
    """What an earlier version charged data set by data set counts, all of it together."""
    for runs, fits in ((2, False), (3, True)):
        federation = _Ledger(material, _ceiling(runs)).begin(run)
        for number in range(2):
            _charge_a_data_set(federation, number)
        # That version's memory; a charged ledger without any is refused whatever it holds.
        write_json(federation.files(_NAME).memory, {"before": {"attempt": 1, "survivors": []}})
        if not fits and (problem := _refused(federation, "what an earlier version charged")):
            return f"{problem} does not count"
        if fits and not (joins(federation) and pay(federation)):
            return "a run was refused that fits beside what an earlier version charged"
    return None


def _charge_a_data_set(federation: Federation, number: int) -> None:
    """Append to a ledger what an earlier version charged a data set of its own."""
    identity, head = federation.identities[_NAME], federation.ledger(_NAME).head()
    dataset = DatasetIdentity("record", f"{number:032}", b"", b"")
    known = {"dataset": dataset.id, "overlaps": [], "description": dataset.describe()}
    event = PoissonGaussian(1.0, noise_for(mu_squared_of(_EPSILON, _DELTA), 1), 1)
    charge = Reservation(
        sequence=0,
        run=f"before-{number}",
        round=1,
        attempt=1,
        purpose="training",
        account="",
        unit="record",
        delta=_DELTA,
        ceiling=Ceiling(_EPSILON, _DELTA),
        events=(event,),
        colluder_events=(event,),
        dataset=dataset.id,
    )
    path = federation.ledger_file(_NAME)
    with Store(path).write() as ledger:
        for kind, body in (("dataset", known), ("reserve", reservation_body(charge))):
            entry = make_entry(identity, _NAME, head, kind, body)
            ledger.append(entry)
            head = entry.head
    with closing(sqlite3.connect(path)) as connection, connection:
        # Its records' fingerprints, of which it has none, stand before the charge.
        connection.execute("INSERT INTO tags VALUES (?, ?, ?)", (head.sequence - 1, b"", b""))


def spending_is_carried(material: Material, all_cases: bool = True) -> str | None:
    """A new ledger after lost keys counts what the old one was charged, finished or not."""
    for finished in (True, False) if all_cases else (False,):
        old = new_identities()
        folder, runs = material.new_folder(), 2
        for number in range(1, runs + 1):
            setting = Setting(identities=old, run=f"old-{number}", folder=folder)
            federation = build(material, one_round(material, _EPSILON), setting)
            if finished or number > 1:
                pay(federation)
            else:
                with failing(TrainingError("made up")):
                    pay(federation)
        before = federation.ledger_file(_NAME)

        def carry(new: Federation, before: Path = before) -> None:
            identity = new.identities[_NAME]
            carry_ledger(before, new.files(_NAME), identity, new.roster)

        each = mu_squared_of(_EPSILON, _DELTA)
        totals = [epsilon_of(n * each, _DELTA) for n in (runs, runs + 1)]
        if problem := _carried(material, old, carry, (sum(totals) / 2, 1.03 * totals[1])):
            return f"an earlier ledger: {problem}"
    return None


Carry = Callable[[Federation], object]


def _carried(
    material: Material, old: dict[str, Identity], carry: Carry, ceilings: tuple[float, float]
) -> str | None:
    """Try a run under a ceiling that is too low and one that is high enough."""
    too_low, enough = ceilings
    for ceiling, fits in ((too_low, False), (enough, True)):
        new = {**new_identities(), "authority": old["authority"]}
        setting = Setting(
            identities=new,
            former={_NAME: (old[_NAME].public_bytes(),)},
            budget=BudgetSection(epsilon=min(ceiling, 1e9)),
        )
        federation = build(material, one_round(material, _EPSILON), setting)
        if joins(federation) or pay(federation):
            return "a site whose keys are new took part with an empty ledger"
        carry(federation)
        again = build(material, federation.config, replace(setting, folder=federation.folder))
        if joins(again) != fits or again.refused(_NAME, 1, 2) == fits:
            return f"a run was {'refused' if fits else 'taken'} under a ceiling of {ceiling:.3f}"
    return None


def statements_are_charged(material: Material, all_cases: bool = True) -> str | None:
    """What a site states was spent counts with its epsilon and with its delta."""
    own = mu_squared_of(_EPSILON, _DELTA)
    stated = ((1.0, 0.9 * _DELTA), (1.0, 0.0), (0.5, 0.5 * _DELTA))
    for epsilon, delta in stated if all_cases else stated[:1]:
        right = epsilon + epsilon_of(own, _DELTA - delta)
        # Without the stated delta it would be less; that must be refused.
        low = (right + epsilon + epsilon_of(own, _DELTA)) / 2 if delta else 0.97 * right
        said = Statement(epsilon, delta, epsilon, "record")
        if problem := _carried(material, new_identities(), _stating(said), (low, 1.03 * right)):
            return f"epsilon {epsilon:g} at delta {delta:g} stated: {problem}"
    for said in (
        Statement(0.1, _DELTA, 0.1, "record"),
        Statement(inf, 0.0, inf, "record"),
        # Protection of persons says nothing of records, nor the other way round.
        Statement(0.1, 0.0, 0.1, "person"),
    ):
        if not _never_fits(material, said):
            return f"a run was taken although {said} was stated"
    return _to_colluders(material)


def _stating(said: Statement) -> Carry:
    def carry(new: Federation) -> None:
        carry_statement(said, new.files(_NAME), new.identities[_NAME], new.roster)

    return carry


def _never_fits(material: Material, said: Statement) -> bool:
    federation = build(
        material, one_round(material, _EPSILON), Setting(budget=BudgetSection(epsilon=1e5))
    )
    _stating(said)(federation)
    return not joins(federation) and not pay(federation)


def _to_colluders(material: Material) -> str | None:
    """What colluders saw before counts in their view."""
    config = one_round(material, _EPSILON, SHARED)
    noise = mechanism_of(config).announced_noise(1, ()) or 0.0
    shares = SHARED.shares
    alone = epsilon_of(shares / noise**2, _DELTA)
    for ceiling, fits in ((alone + 4.0, False), (alone + 6.0, True)):
        budget = BudgetSection(epsilon=4.0, colluders_epsilon=ceiling)
        federation = build(material, config, Setting(budget=budget))
        _stating(Statement(1.0, 0.0, 5.0, "record"))(federation)
        if pay(federation, noise) != fits:
            return "what colluders had seen before does not count"
    return None
