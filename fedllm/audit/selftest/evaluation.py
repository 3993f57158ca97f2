"""Checks of evaluation at the sites: what one unit adds, the noise, and what is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.audit.selftest.accountant import close, mu_squared_of, noise_for
from fedllm.audit.selftest.blocks import scripted
from fedllm.audit.selftest.building import Setting, build, new_identities, records_of
from fedllm.audit.selftest.entropy import scripted_normals, watched, weak_key
from fedllm.audit.selftest.federation import Federation
from fedllm.audit.selftest.material import (
    LABELS,
    SITES,
    TASKS,
    Kind,
    Material,
    Unit,
    Vector,
    by_itself,
    dataset_of,
    some_persons,
)
from fedllm.audit.selftest.probe import WAYS, Way
from fedllm.audit.selftest.seeds import site_config
from fedllm.audit.selftest.statistics import first, tails, unrelated, variance
from fedllm.config import RunConfig, Task
from fedllm.config.task import trains_a_head
from fedllm.data.records import Record
from fedllm.federation.protocol.evaluating import Holdout, noised_sum
from fedllm.identity.keys import Identity
from fedllm.mechanisms import mechanism_of
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.tasks.scores import UnitScores

_NAME, _DELTA, _EPSILON, _COUNT = SITES[0], 1e-5, 0.5, 3
_DRAWS = 3000
# What a unit's scores are parts of; 1 where none stands here.
_LIMITS = {"loss": 8.0, "right_spans": 32.0, "predicted_spans": 32.0, "gold_spans": 32.0}
_FRACTION = 0.4
_GROUPS = ("north", "south")
# Two levels of the sums' quantiser, whose largest value is 2**18 at 24 bits.
_ROUNDING = 2 * 2.0**18 / 2**23


def evaluation_is_private(material: Material, every_task: bool) -> str | None:
    """One unit moves a sum by no more than is hidden; every sum has its noise, as charged."""
    for place, way in enumerate((WAYS[0], WAYS[1])):
        for task in TASKS if every_task else TASKS[place : place + 1]:
            kind: Kind = "bert" if trains_a_head(task) else "llama"
            config = _config(material, way, kind, task)
            if problem := _units_are_bounded(config) or _noise(way, config):
                return f"{way.name}, {task}: {problem}"
            persons = some_persons if task == TASKS[0] else by_itself
            if problem := _as_sent(material, way, config, persons):
                return f"{way.name}, {task}: {problem}"
    # Groups first: a record may be of none that is told.
    for way, parts in zip(WAYS, ("group", "label")[: 2 if every_task else 1], strict=False):
        config = _config(material, way, "bert", TASKS[0], parts)
        if problem := (
            _units_are_bounded(config)
            or _noise(way, config)
            or _as_sent(material, way, config, some_persons)
        ):
            return f"{way.name}, by {parts}: {problem}"
    return None


def _config(
    material: Material, way: Way, kind: Kind, task: Task, parts: str | None = None
) -> RunConfig:
    told = {"parts": parts, "groups": _GROUPS if parts == "group" else None}
    return site_config(
        material,
        way,
        kind=kind,
        task=task,
        rounds={"count": _COUNT},
        evaluation={"every": 1, "epsilon": _EPSILON, "holdout": _FRACTION, **told},
    )


def _labels(config: RunConfig) -> tuple[str, ...]:
    return config.data.labels or ()


def _parts(config: RunConfig) -> tuple[str, ...]:
    return {"label": LABELS, "group": _GROUPS, None: ()}[config.evaluation.parts]


def _entries(config: RunConfig) -> int:
    return 1 + len(task_of(config).site_scores)


def _deviation(config: RunConfig, shares: int, noise: float) -> float:
    """Return the standard deviation of one site's noise.

    E values in [0, 1] move by sqrt(E), and with those of parts, of which each record has one, by
    sqrt(2 E).
    """
    values = _entries(config) * (2 if _parts(config) else 1)
    return noise * float(np.sqrt(values / shares))


def _units_are_bounded(config: RunConfig) -> str | None:
    """Whatever a unit scores, wherever its records are, it adds no more than is hidden."""
    scores, parts = _entries(config) - 1, len(_parts(config))
    longest = np.sqrt((scores + 1) * (2 if parts else 1)) * (1 + 1e-9)
    places = np.array([0, parts - 1, -1, 0], dtype=np.int64) if parts else None

    def added(value: float, records: int, where: NDArray[np.int64] | None) -> Vector:
        units = np.zeros(records, dtype=np.int64)
        found = UnitScores.of_records(np.full((records, scores), value), units, where)
        return noised_sum(config, _labels(config), found, stream).astype(np.float64)

    with scripted_normals(np.zeros(64)):
        stream = RandomStream.secure()
        nobody = added(0.0, 0, None)
        for value in (0.0, 0.5, 7.9, 8.1, 1e9, -3.0, np.nan, np.inf, -np.inf):
            for records in (1, 2, 4):
                moved = added(value, records, places if places is None else places[:records])
                moved = moved - nobody
                size = (scores + 1) * (1 + parts)
                if moved.shape != (size,) or not (moved >= 0).all() or not (moved <= 1).all():
                    return f"a unit that scores {value} adds {moved}"
                if abs(moved[0] - 1) > 1e-9:
                    return "a unit does not count as one"
                if not np.linalg.norm(moved) <= longest:
                    return f"a unit of {records} records adds {np.linalg.norm(moved):.3f}"
    return None


def _noise(way: Way, config: RunConfig) -> str | None:
    event: Any = mechanism_of(config).evaluation.event
    if not close(event.noise_multiplier, noise_for(mu_squared_of(_EPSILON, _DELTA), _COUNT)):
        return f"evaluations are charged at noise {event.noise_multiplier:.4f}"
    deviation, entries = (
        _deviation(config, way.shares, event.noise_multiplier),
        _entries(config),
    )
    # A site that holds nobody out must not be told from one that does.
    sizes = [
        UnitScores.of_records(np.full((units, entries - 1), 0.4), np.arange(units))
        for units in (5, 0)
    ]

    def sums_of(found: UnitScores) -> Vector:
        return noised_sum(config, _labels(config), found, RandomStream.secure()).astype(float)

    with scripted_normals(np.zeros(64)):
        right = [sums_of(one) for one in sizes]
    drawn = []
    with watched() as seen:
        for turn in range(_DRAWS):
            drawn.append(sums_of(sizes[turn % 2]) - right[turn % 2])
    if problem := weak_key(seen):
        return problem
    rows = np.stack(drawn) / deviation
    return first(
        *(variance(column, 1.0, f"noise of sum {n}") for n, column in enumerate(rows.T)),
        tails(rows.ravel(), "noise of sums", (2, 3)),
        unrelated(list(rows.T), len(rows), "noise of the sums of one evaluation"),
        unrelated([rows[:-1].ravel(), rows[1:].ravel()], rows[1:].size, "evaluations"),
    )


def _as_sent(material: Material, way: Way, config: RunConfig, unit: Unit) -> str | None:
    """What a site sends is the sum over its held-out units, and noise as its ledger says."""
    if unit is some_persons:
        data = config.data.model_copy(update={"unit": "person"})
        config = config.model_copy(update={"data": data})
    records = {name: _of_groups(records_of(name, config.task, unit)) for name in SITES}
    identities = _that_hold_some_out(records[_NAME])
    setting = Setting(identities=identities, records=lambda name: records[name])
    federation = build(material, config, setting)
    script = scripted(64)
    sums = []
    for number in range(1, _COUNT + 1):
        with scripted_normals(script):
            sums.append(federation.sent(_NAME, number, purpose="evaluation"))
    charges = federation.charges(_NAME)
    if [charge.purpose for charge in charges] != ["evaluation"] * _COUNT:
        return "an evaluation is not in the ledger"
    event: Any = charges[0].events[0]
    deviation = _deviation(config, way.shares, event.noise_multiplier)
    right = _held_out_sum(material, federation, records[_NAME])
    wanted = right + deviation * script[: len(right)]
    worst = max(float(np.abs(found - wanted).max()) for found in sums)
    if not worst <= 2 * _ROUNDING:
        return f"a sum of held-out units is off by {worst:.3g} (deviation {deviation:.3g})"
    if not federation.refused(_NAME, _COUNT, _COUNT + 1, purpose="evaluation"):
        return "a run had more evaluations than it was planned with"
    return None


def _that_hold_some_out(records: list[Record]) -> dict[str, Identity]:
    """Make keys by which the first site holds out some of its units, and not all of them."""
    while True:
        identities = new_identities()
        kept, held = Holdout(_holdout_key(identities), _FRACTION).split(records)
        if kept and held:
            return identities


def _of_groups(records: list[Record]) -> list[Record]:
    """Say what records are of: one of the groups that are told, another, or nothing."""
    names = (*_GROUPS, "elsewhere", None)
    return [replace(record, group=names[i % 4]) for i, record in enumerate(records)]


def _holdout_key(identities: dict[str, Identity]) -> bytes:
    return identities[_NAME].derive("held-out records")


def _held_out_sum(material: Material, federation: Federation, records: list[Record]) -> Vector:
    """Score held-out units one record at a time, and add them up, (E,) and so for each part."""
    config = federation.config
    kept, held = Holdout(_holdout_key(federation.identities), _FRACTION).split(records)
    both = {r.unit for r in kept} & {r.unit for r in held} - {None}
    if both or len(kept) + len(held) != len(records):
        # No sum is right where a person is in both.
        return np.full(_entries(config), np.inf)
    model, task, parts = material.model(config), task_of(config), _parts(config)
    total = np.zeros((1 + len(parts), _entries(config)))
    dataset = dataset_of(held, config, model)
    of_units: dict[int, list[tuple[str | None, Vector]]] = {}
    for index, unit in enumerate(dataset.units):
        with torch.no_grad():
            scores = task.scores(model, dataset.batch(np.array([index])))[0]
        of = held[index].values.get("label") if parts == LABELS else held[index].group
        of_units.setdefault(int(unit), []).append((of, np.asarray(scores, dtype=np.float64)))
    limits = [_LIMITS.get(score.name, 1.0) for score in task.site_scores]
    for rows in of_units.values():
        for place, part in enumerate((None, *parts)):
            its = [row for of, row in rows if part is None or of == part]
            if its:
                mean = np.clip(np.mean(its, axis=0) / limits, 0.0, 1.0)
                total[place] += len(its) / len(rows) * np.array([1.0, *mean])
    return total.ravel()
