"""Checks of evaluation at the sites: what one unit adds, the noise, and what is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedllm.audit.selftest.accountant import close, mu_squared_of, noise_for
from fedllm.audit.selftest.blocks import scripted
from fedllm.audit.selftest.building import Setting, build, new_identities, records_of
from fedllm.audit.selftest.entropy import scripted_normals, watched, weak_key
from fedllm.audit.selftest.federation import Federation
from fedllm.audit.selftest.material import (
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

_NAME, _DELTA, _EPSILON, _COUNT = SITES[0], 1e-5, 0.5, 3
_DRAWS = 3000
# What a unit's scores are parts of; 1 where none stands here.
_LIMITS = {"loss": 8.0, "right_spans": 32.0, "predicted_spans": 32.0, "gold_spans": 32.0}
_FRACTION = 0.4
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
    return None


def _config(material: Material, way: Way, kind: Kind, task: Task) -> RunConfig:
    return site_config(
        material,
        way,
        kind=kind,
        task=task,
        rounds={"count": _COUNT},
        evaluation={"every": 1, "epsilon": _EPSILON, "holdout": _FRACTION},
    )


def _entries(config: RunConfig) -> int:
    return 1 + len(task_of(config.task).site_scores)


def _deviation(config: RunConfig, shares: int, noise: float) -> float:
    """Return the standard deviation of one site's noise: E values in [0, 1] move by sqrt(E)."""
    return noise * float(np.sqrt(_entries(config) / shares))


def _units_are_bounded(config: RunConfig) -> str | None:
    """Whatever a unit scores, it adds a vector with entries from 0 to 1."""
    scores = _entries(config) - 1
    with scripted_normals(np.zeros(16)):
        stream = RandomStream.secure()
        nobody = noised_sum(config, np.zeros((0, scores)), stream)
        for value in (0.0, 0.5, 7.9, 8.1, 1e9, -3.0, np.nan, np.inf, -np.inf):
            added = noised_sum(config, np.full((1, scores), value), stream) - nobody
            if added.shape != (scores + 1,) or not (added >= 0).all() or not (added <= 1).all():
                return f"a unit that scores {value} adds {added}"
            if added[0] != 1:
                return "a unit does not count as one"
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
    sizes = [np.full((units, entries - 1), 0.4) for units in (5, 0)]
    with scripted_normals(np.zeros(16)):
        right = [noised_sum(config, one, RandomStream.secure()).astype(float) for one in sizes]
    drawn = []
    with watched() as seen:
        for turn in range(_DRAWS):
            sums = noised_sum(config, sizes[turn % 2], RandomStream.secure())
            drawn.append(sums - right[turn % 2])
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
    records = {name: records_of(name, config.task, unit) for name in SITES}
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
    entries = _entries(config)
    deviation = _deviation(config, way.shares, event.noise_multiplier)
    wanted = _held_out_sum(material, federation, records[_NAME]) + deviation * script[:entries]
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


def _holdout_key(identities: dict[str, Identity]) -> bytes:
    return identities[_NAME].derive("held-out records")


def _held_out_sum(material: Material, federation: Federation, records: list[Record]) -> Vector:
    """Score held-out units one record at a time, and add them up, (E,)."""
    config = federation.config
    kept, held = Holdout(_holdout_key(federation.identities), _FRACTION).split(records)
    both = {r.unit for r in kept} & {r.unit for r in held} - {None}
    if both or len(kept) + len(held) != len(records):
        # No sum is right where a person is in both.
        return np.full(_entries(config), np.inf)
    model, task = material.model(config), task_of(config.task)
    total = np.zeros(_entries(config))
    dataset = dataset_of(held, config, model)
    of_units: dict[int, list[Vector]] = {}
    for index, unit in enumerate(dataset.units):
        with torch.no_grad():
            scores = task.scores(model, dataset.batch(np.array([index])))[0]
        of_units.setdefault(int(unit), []).append(np.asarray(scores, dtype=np.float64))
    for rows in of_units.values():
        limits = [_LIMITS.get(score.name, 1.0) for score in task.site_scores]
        total += [1.0, *np.clip(np.mean(rows, axis=0) / limits, 0.0, 1.0)]
    return total
