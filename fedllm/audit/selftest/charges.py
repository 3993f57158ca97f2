"""Checks of what rounds are charged, against what public numbers say that they must cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedllm.audit.ledgers.recompute import recompute
from fedllm.audit.selftest.accountant import close, epsilon_of, mu_squared_of, noise_for, spent
from fedllm.audit.selftest.building import Setting, build, leading_digits, records_of
from fedllm.audit.selftest.entropy import watched
from fedllm.audit.selftest.federation import Federation
from fedllm.audit.selftest.material import PLAIN, SITES, Material, Unit, by_itself, some_persons
from fedllm.audit.selftest.probe import WAYS, Way
from fedllm.audit.selftest.seeds import site_config
from fedllm.federation.protocol.evaluating import Holdout
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.accounting.events import PoissonDiscreteGaussian
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.charges import Reservation

_EPSILON, _DELTA, _EVALUATIONS = 8.0, 1e-5, 3.0
_ROUNDS = 2
_SAME = 1e-12


@dataclass(frozen=True)
class _Sizes:
    """A site of so many records, and the batch that a run asks for."""

    records: int
    unit: Unit
    units: int
    batch: int

    @property
    def rate(self) -> float:
        """Probability of one unit to be in a batch; follows from what is announced."""
        return min(1.0, self.batch / leading_digits(self.units))


# Rates with many digits: 16 records of 7 persons, and 25 records, which announce 24; more asked
# for than there are.
_SIZES = (
    _Sizes(16, some_persons, 7, 3),
    _Sizes(25, by_itself, 25, 7),
    _Sizes(7, by_itself, 7, 8),
)


def rates_are_charged(material: Material, all_sizes: bool = True) -> str | None:
    """Units are drawn and charged at the batch over announced units, to the last digit."""
    for size in _SIZES if all_sizes else _SIZES[:2]:
        if problem := _rate(material, size, all_sizes):
            people = " persons" if size.unit is some_persons else " records"
            return f"{size.units}{people}, batch {size.batch}: {problem}"
    return _public_rate(material)


def _public_rate(material: Material) -> str | None:
    """With shared noise the rate is the run's own, for persons too, and is charged as it is."""
    rate, persons = 0.7654321, _SIZES[0]
    config = site_config(
        material,
        WAYS[1],
        training={"sampling_rate": rate},
        data={"unit": "person"},
        evaluation={"every": 0},
    )
    federation = build(material, config, _of_size(persons))
    with watched() as seen:
        noise = mechanism_of(config).announced_noise(1, ())
        federation.sent(SITES[0], 1, noise=noise)
    if seen.sampled != [(persons.units, rate)]:
        return f"batches of shared noise are drawn as {seen.sampled}"
    (charge,) = federation.charges(SITES[0])
    for event in (*charge.events, *charge.colluder_events):
        if (event.sampling_rate, event.steps) != (rate, 1):  # type: ignore[union-attr]
            return f"a public rate of {rate} is charged as {event}"
    return None


def _of_size(size: _Sizes) -> Setting:
    return Setting(records=lambda name: records_of(name, PLAIN, size.unit, size.records))


def _rate(material: Material, size: _Sizes, foreign: bool) -> str | None:
    data = {"unit": "person"} if size.unit is some_persons else {}
    config = material.config(
        "bert",
        training={"batch_size": size.batch, "local_steps": 3},
        encryption={"masks": False, "bits": 24},
        privacy={"epsilon": _EPSILON},
        rounds={"count": _ROUNDS},
        data=data,
    )
    federation = build(material, config, _of_size(size))
    name = SITES[0]
    member = federation.joined(name).member
    if member is None or member.units != leading_digits(size.units):
        return "a site announces another size than its leading binary digits"
    for number in range(1, _ROUNDS + 1):
        with watched() as seen:
            federation.sent(name, number)
        if seen.sampled != [(size.units, size.rate)] * 3:
            return f"batches are drawn as {seen.sampled[:1]} and {len(seen.sampled)} times"
    state = read_state(federation.ledger_file(name))
    for charge in state.reservations.values():
        (event,) = charge.events
        found = (event.sampling_rate, event.steps)  # type: ignore[union-attr]
        if abs(found[0] - size.rate) > _SAME * size.rate or found[1] != 3:
            return f"the ledger says rate {found[0]!r} and {found[1]} steps"
        unit = "person" if size.unit is some_persons else "record"
        if charge.unit != unit or charge.delta != _DELTA:
            return "the ledger names another unit or delta"
    events = [event for charge in state.reservations.values() for event in charge.events]
    return _keeps(events) if foreign else None


def _keeps(events: list[Any]) -> str | None:
    """Tell whether foreign accountants find the run's epsilon, and most of it spent."""
    value = recompute(events, _DELTA).value
    if not 0.9 * _EPSILON <= value <= 1.01 * _EPSILON:
        return f"the run promises epsilon {_EPSILON:g}, and its ledger holds {value:.3f}"
    return None


def runs_are_charged(material: Material) -> str | None:
    """Rounds and evaluations cost what public numbers say, in both views, and no run too much."""
    for way in WAYS:
        if problem := _run(material, way):
            return f"{way.name}: {problem}"
    return None


def _run(material: Material, way: Way) -> str | None:
    # Evaluation does not go with whole sites as units.
    evaluates = way.divided != "not" or way.discrete
    evaluation = {"every": 1, "epsilon": _EVALUATIONS, "holdout": 0.2} if evaluates else {}
    config = site_config(material, way, rounds={"count": _ROUNDS}, evaluation=evaluation)
    federation = build(material, config)
    name = SITES[0]
    announced: list[float] = []
    for number in range(1, _ROUNDS + 1):
        noise = mechanism_of(config).announced_noise(number, announced)
        announced += [noise] if noise is not None else []
        with watched() as seen:
            federation.sent(name, number, noise=noise)
        if evaluates:
            federation.sent(name, number, purpose="evaluation")
            population = {units for units, _ in seen.sampled}
            if population != {kept_units(federation, name)}:
                return "training draws from other units than those that are not held out"
    return _as_expected(federation, way, name, evaluates)


def kept_units(federation: Federation, name: str) -> int:
    """Return how many records of a site are not held out, and see that none is both."""
    records = records_of(name, federation.config.task)
    key = federation.identities[name].derive("held-out records")
    kept, held = Holdout(key, federation.config.evaluation.holdout).split(records)
    if len(kept) + len(held) != len(records) or {id(r) for r in kept} & {id(r) for r in held}:
        return -1
    return len(kept)


def _as_expected(federation: Federation, way: Way, name: str, evaluates: bool) -> str | None:
    config = federation.config
    steps = way.releases(config)
    shares = way.shares
    whole = mu_squared_of(_EPSILON, _DELTA)
    for_evaluation = mu_squared_of(_EVALUATIONS, _DELTA) if evaluates else 0.0
    right = {
        "training": noise_for(whole - for_evaluation, _ROUNDS * steps),
        "evaluation": noise_for(for_evaluation, _ROUNDS) if evaluates else 0.0,
    }
    charges = federation.charges(name)
    if way.discrete:
        return _integers(federation, charges, shares)
    purposes = ["training", "evaluation"] if evaluates else ["training"]
    wanted = [(purpose, number) for number in range(1, _ROUNDS + 1) for purpose in purposes]
    if [(charge.purpose, charge.round) for charge in charges] != wanted:
        return f"the ledger holds {[(c.purpose, c.round) for c in charges]} and not {wanted}"
    for charge in charges:
        many = steps if charge.purpose == "training" else 1
        if problem := _round(charge, many, right[charge.purpose], shares):
            return problem
    found = epsilon_of(spent(event for charge in charges for event in charge.events), _DELTA)
    if not 0.9 * _EPSILON <= found <= 1.001 * _EPSILON:
        return f"the run promises epsilon {_EPSILON:g} and was charged {found:.3f}"
    return None


def _round(charge: Reservation, many: int, right: float, shares: int) -> str | None:
    event, alone = _single(charge.events), _single(charge.colluder_events)
    if event is None or alone is None or event[1] != many or alone[1] != many:
        return f"a round is charged as {charge.events}, {charge.colluder_events}"
    if not close(event[0], right):
        return (
            f"{charge.purpose} is charged at noise {event[0]:.4f}; public numbers give {right:.4f}"
        )
    # Everyone else colluding knows all shares of the noise but the site's own.
    if abs(alone[0] * np.sqrt(shares) / event[0] - 1) > 1e-6:
        return f"against colluders {charge.purpose} counts noise {alone[0]:.4f}"
    return None


def _integers(federation: Federation, charges: list[Reservation], shares: int) -> str | None:
    """Tell what is wrong with the charges of integer noise, beside its amount."""
    length = federation.terms.update_length
    for charge in charges:
        if charge.purpose != "training":
            continue
        for events, many in ((charge.events, shares), (charge.colluder_events, 1)):
            (event,) = events
            if not isinstance(event, PoissonDiscreteGaussian):
                return "integer noise is charged as another"
            moved = np.sqrt(event.clipping_steps**2 + length / 4)
            enough = np.sqrt(many) * event.share_deviation >= event.noise_multiplier * moved
            if (event.shares, event.length, event.steps) != (many, length, 1) or not enough:
                return f"integer noise is charged as {event}"
    return None


def _single(events: tuple[Any, ...]) -> tuple[float, int] | None:
    """Return noise and count of the one event of a round in which everyone takes part."""
    if len(events) != 1 or getattr(events[0], "sampling_rate", 1.0) != 1.0:
        return None
    (event,) = events
    count = event.count if hasattr(event, "count") else getattr(event, "steps", None)
    return (event.noise_multiplier, count) if count else None
