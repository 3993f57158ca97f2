"""Checks of what records cost before: in other data sets, under lost keys, in no ledger at all.

Each looks at a site from outside: a run that fits without that spending must be refused with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from fedllm.audit.selftest.accountant import epsilon_of, mu_squared_of
from fedllm.audit.selftest.attempts import SHARED, failing, joins, one_round, pay
from fedllm.audit.selftest.building import Setting, build, new_identities, records_of
from fedllm.audit.selftest.federation import RUN, Federation
from fedllm.audit.selftest.material import SITES, Material
from fedllm.config import BudgetSection
from fedllm.data.records import Record
from fedllm.errors import TrainingError
from fedllm.federation.site.carrying import Statement, carry_ledger, carry_statement
from fedllm.identity.keys import Identity
from fedllm.mechanisms import mechanism_of

_NAME, _DELTA, _EPSILON = SITES[0], 1e-5, 2.0
_COUNT = 10


def overlaps_are_charged(material: Material, all_cases: bool = True) -> str | None:
    """Data sets that share a record or a person share what was spent, whatever else differs."""
    everyone = _persons("first")
    others = _persons("second")
    cases: dict[str, tuple[list[Record], list[Record]]] = {
        "the same records": (everyone, everyone),
        "the same records in another order": (everyone, everyone[::-1]),
        "the same records from another file": (everyone, [_moved(r) for r in everyone]),
        "some of the records": (everyone, everyone[:3]),
        "more records": (everyone[:3], everyone),
        "one shared record": (everyone, [*others, _moved(everyone[-1])]),
        "one shared record of persons": (
            _named(everyone, "a"),
            [*_named(others, "b"), replace(everyone[0], unit="b 99")],
        ),
        "one shared person": (
            _named(everyone, "a"),
            [*_named(others, "b"), replace(others[0], unit="a 3")],
        ),
    }
    for what in cases if all_cases else ("one shared record", "one shared person"):
        first, second = cases[what]
        if problem := _twice(material, first, second):
            return f"{what}: {problem}"
    return _by_way_of(material, everyone, others) if all_cases else None


def _persons(seed: str) -> list[Record]:
    return records_of(seed, count=_COUNT)


def _named(records: list[Record], prefix: str) -> list[Record]:
    return [replace(record, unit=f"{prefix} {i // 2}") for i, record in enumerate(records)]


def _moved(record: Record) -> Record:
    return replace(record, origin="elsewhere:1", site=None)


@dataclass
class _Ledger:
    """One site's keys and files, used by run after run."""

    material: Material
    budget: BudgetSection
    identities: dict[str, Identity] = field(default_factory=new_identities)
    runs: int = 0

    def __post_init__(self) -> None:
        self.folder: Path = self.material.new_folder()

    def run(self, records: list[Record]) -> Federation:
        """Begin a run on some records of the first site."""
        self.runs += 1
        persons = records[0].unit is not None
        config = one_round(self.material, _EPSILON)
        if persons:
            data = config.data.model_copy(update={"unit": "person"})
            config = config.model_copy(update={"data": data})
        setting = Setting(
            identities=self.identities,
            budget=self.budget,
            folder=self.folder,
            run=f"{RUN}-{self.runs}",
            records=lambda name: records,
        )
        return build(self.material, config, setting)


def _ceiling(runs: int) -> BudgetSection:
    """Return a budget for so many runs of one round and no more."""
    each = mu_squared_of(_EPSILON, _DELTA)
    fits, exceeds = (epsilon_of(n * each, _DELTA) for n in (runs, runs + 1))
    return BudgetSection(epsilon=(fits + exceeds) / 2)


def _twice(material: Material, first: list[Record], second: list[Record]) -> str | None:
    ledger = _Ledger(material, _ceiling(1))
    if not pay(ledger.run(first)):
        return "a run below the ceiling was refused"
    return _refused(ledger.run(second), "a second run above the ceiling was taken")


def _refused(federation: Federation, problem: str) -> str | None:
    if joins(federation) or pay(federation):
        return problem
    return None


def _by_way_of(material: Material, one: list[Record], other: list[Record]) -> str | None:
    """A data set that overlaps two has to do with what both have spent."""
    ledger = _Ledger(material, _ceiling(2))
    for records in (one, other):
        if not pay(ledger.run(records)):
            return "a run below the ceiling was refused"
    both = [*one[:2], *other[:2]]
    return _refused(ledger.run(both), "a data set that overlaps two counted one alone")


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
            carry_ledger(before, new.ledger_file(_NAME), identity, new.roster)

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
        carry_statement(said, new.ledger_file(_NAME), new.identities[_NAME], new.roster)

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
