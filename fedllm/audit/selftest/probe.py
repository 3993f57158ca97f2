"""One site's contribution to a round by every mechanism and for every task, noise alone or not.

Everything is the program's own, from `mechanism_of` to the update that is about to be quantised;
what the noise must be is computed here from the configuration alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters import adapter_of
from fedllm.audit.selftest.material import (
    BATCH,
    MODELS,
    SITES,
    Kind,
    Material,
    Unit,
    Vector,
    by_itself,
    dataset_of,
    made_up,
    some_persons,
    start_of,
)
from fedllm.config import RunConfig, Task
from fedllm.federation.site.work import TrainingAtSite
from fedllm.mechanisms import LocalResult, LocalSettings, LocalStatistics, SiteRound, mechanism_of
from fedllm.mechanisms.discrete import IntegerGrid
from fedllm.mechanisms.work import LocalWork
from fedllm.models.manifest import Segment
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training.optimizers import ADAM_STABILITY

Sections = Mapping[str, Mapping[str, Any]]
RECORDS_OF_A_PROBE = 12
# Smallest sum, colluders assumed, and so shares of the noise.
_SMALLEST, _COLLUDERS = 3, 1
_SHARES = _SMALLEST - _COLLUDERS
# Adapters of which a site is sent more than it trains, in rounds that train different tensors; and
# tensors of the base itself, whose gradients are found in another way.
METHODS: tuple[tuple[dict[str, Any], int], ...] = (
    ({"method": "rolora"}, 1),
    ({"method": "rolora"}, 2),
    ({"method": "fedsvd"}, 1),
    ({"method": "core"}, 1),
    ({"method": "bitfit"}, 1),
    ({"method": "layers", "last_layers": 1}, 1),
)
_NORM, _NOISE, _STEPS = 0.7, 1.3, 3
_RATE, _HEAD_RATE = 1e-3, 3e-3
_LOCAL: dict[str, dict[str, Any]] = {
    "training": {"local_steps": _STEPS},
    "privacy": {"clipping_norm": _NORM},
}
_SHARED: dict[str, dict[str, Any]] = {
    "privacy": {
        # Of a run whose levels have room for the noise.
        "epsilon": 8.0,
        "noise": "distributed",
        "colluders": _COLLUDERS,
        "clipping_norm": _NORM,
    },
    "rounds": {"min_sites": _SMALLEST},
    "training": {"local_steps": 1, "sampling_rate": 0.5},
    "encryption": {"bits": 20},
}


@dataclass(frozen=True)
class Way:
    """A way in which a run is private, as a configuration asks for it.

    Attributes
    ----------
    name : str
        For people.
    sections : mapping
        Of the configuration.
    deviation : float
        Standard deviation of one site's noise in its contribution, over that of one value of
        a noised sum's divisor and learning rate; see `Probe.deviations`.
    divided : {"units", "public", "not"}
        What a sum is divided by: the batch that a site of so many units expects, the public
        batch size, or nothing, where the update itself is noised.
    shared, moving, discrete : bool
        Whether the sites share the noise; whether the norm moves (one step of Adam); whether
        noise is integers.
    """

    name: str
    sections: Sections
    deviation: float
    divided: Literal["units", "public", "not"]
    shared: bool = False
    moving: bool = False
    discrete: bool = False

    @property
    def sign(self) -> int:
        """Minus where noise is drawn for the gradients, plus where it is for what leaves."""
        return -1 if self.divided == "units" else 1

    @property
    def shares(self) -> int:
        """How many sites' shares make up the noise: those of the smallest sum, honest."""
        return _SHARES if self.shared else 1

    def releases(self, config: RunConfig) -> int:
        """Return how many noised sums of a unit one round releases."""
        return 1 if self.divided == "not" else config.training.local_steps


# The norm of a moving one is so small that Adam's step still tells how large the gradient was.
_SMALL = 2 * ADAM_STABILITY * BATCH / _NOISE
WAYS = (
    Way("local noise", _LOCAL, _NOISE * _NORM * sqrt(_STEPS), "units"),
    Way("shared noise", _SHARED, _NOISE * _NORM / sqrt(_SHARES), "public", shared=True),
    Way(
        "discrete noise",
        {
            **_SHARED,
            "privacy": {**_SHARED["privacy"], "distribution": "discrete_gaussian"},
            "training": {
                **_SHARED["training"],
                "learning_rate": 1.0,
                "head_learning_rate": 1.0,
            },
            "encryption": {"bits": 20},
        },
        _NOISE * _NORM / sqrt(_SHARES),
        "not",
        shared=True,
        discrete=True,
    ),
    Way(
        "moving norm",
        {
            "privacy": {"clipping_quantile": 0.5, "clipping_norm": _SMALL},
            "training": {"optimizer": "adam", "local_steps": 1},
        },
        # Andrew et al. 2021, theorem 1: the count beside the sum, weighted by 0.2.
        _NOISE * sqrt(1 + 0.2**2) * _SMALL,
        "units",
        moving=True,
    ),
    Way(
        "noise of a whole site",
        {"privacy": {"unit": "site", "clipping_norm": _NORM}},
        _NOISE * 2 * _NORM,
        "not",
    ),
    Way(
        "shared noise of whole sites",
        {
            "privacy": {**_SHARED["privacy"], "unit": "site"},
            "rounds": {"min_sites": _SMALLEST},
        },
        _NOISE * 2 * _NORM / sqrt(_SHARES),
        "not",
        shared=True,
    ),
)


@dataclass(frozen=True)
class Quiet:
    """A site's training whose batches are all empty, so that its steps hold noise alone."""

    work: LocalWork

    @property
    def units(self) -> int:
        """Of the site."""
        return self.work.units

    @property
    def length(self) -> int:
        """Of an update."""
        return self.work.length

    def train(
        self, settings: LocalSettings, sampling: RandomStream, noise: RandomStream
    ) -> LocalResult:
        """Train on nobody."""
        return self.work.train(replace(settings, sampling_rate=0.0), sampling, noise)

    def gradient_sum(
        self, settings: LocalSettings, sampling: RandomStream
    ) -> tuple[Vector, LocalStatistics]:
        """Sum over nobody."""
        return self.work.gradient_sum(replace(settings, sampling_rate=0.0), sampling)


@dataclass(frozen=True)
class Probe:
    """A site that contributes by one mechanism for one task.

    Attributes
    ----------
    name : str
        For people.
    units : int
        Records or persons, counted here.
    """

    name: str
    way: Way
    config: RunConfig
    work: TrainingAtSite
    units: int

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The blocks of values of a contribution."""
        return self.work.method.up.segments

    @cached_property
    def deviations(self) -> Vector:
        """Standard deviation that the noise of each value must have, (P,), by public numbers."""
        if self.way.discrete:
            return np.full(self.work.length, self.share * _NORM / self.grid.clipping_steps)
        divisor = {"units": min(BATCH, self.units), "public": BATCH, "not": 1}[self.way.divided]
        same = np.full(self.work.length, self.way.deviation / divisor)
        return same if self.way.divided == "not" or self.way.moving else same * self._rates

    @cached_property
    def _rates(self) -> Vector:
        rates = [_HEAD_RATE if s.group == "head" else _RATE for s in self.segments]
        return np.repeat(rates, [segment.size for segment in self.segments])

    @cached_property
    def _bounds(self) -> Vector:
        """What the coordinator multiplies a part by, (P,)."""
        bounds = mechanism_of(self.config).bounds(self.segments)
        return np.repeat(bounds, [segment.size for segment in self.segments])

    @property
    def steps(self) -> int:
        """How many noised sums a contribution adds up."""
        return self.way.releases(self.config)

    @property
    def grid(self) -> IntegerGrid:
        """The grid of discrete noise."""
        mechanism = mechanism_of(self.config)
        return mechanism.grid(self.work.length)  # type: ignore[attr-defined,no-any-return]

    @property
    def share(self) -> int:
        """Standard deviation of discrete noise in grid steps."""
        return self.grid.share(_NOISE)

    def noise(self, quiet: bool = True, site: str = SITES[0], number: int = 1) -> Vector:
        """Contribute to a round; return each value over its right deviation, (P,).

        Parameters
        ----------
        quiet : bool
            With empty batches.
        site, number : str and int
            Which site and round this is to be.
        """
        updates: list[Vector] = []

        def quantise(update: NDArray[Any], rounding: RandomStream) -> NDArray[np.uint64]:
            updates.append(update.astype(np.float64))
            rounding.bytes(1)
            return np.zeros(len(update), dtype=np.uint64)

        def quantise_parts(parts: NDArray[Any], rounding: RandomStream) -> NDArray[np.uint64]:
            return quantise(parts * self._bounds, rounding)

        work: LocalWork = Quiet(self.work) if quiet else self.work
        mechanism = mechanism_of(self.config)
        announced = mechanism.announced_units(self.units)
        asked = SiteRound(work, announced, _NOISE, quantise, quantise_parts, (site, number))
        levels = mechanism.contribute(asked).levels
        if self.way.discrete:
            steps = levels.astype(np.float64) - self.grid.half
            return steps * (_NORM / self.grid.clipping_steps) / self.deviations
        return self._before_the_optimiser(updates[-1]) / self.deviations

    def _before_the_optimiser(self, update: Vector) -> Vector:
        if not self.way.moving:
            return update
        step = update / self._rates
        # The first step of Adam is g / (|g| + s): solved for g.
        return ADAM_STABILITY * step / (1 - np.abs(step))


def probe(
    material: Material,
    way: Way,
    kind: Kind,
    task: Task,
    unit: Unit = by_itself,
    lora: Mapping[str, Any] | None = None,
    number: int = 1,
) -> Probe:
    """Make a probe of a mechanism, a task, and a base model, in round ``number``."""
    training = {"learning_rate": _RATE, "head_learning_rate": _HEAD_RATE}
    sections = {name: dict(section) for name, section in way.sections.items()}
    sections["training"] = {**training, **sections.get("training", {})}
    sections["lora"] = dict(lora or {"rank": 8})
    sections["data"] = {"train": "made up", "sites": 4}
    if unit is not by_itself:
        sections["data"]["unit"] = "person"
    config = material.config(kind, task, **sections)
    model = material.model(config)
    records = made_up(RECORDS_OF_A_PROBE, SITES[0], unit, task_of(task))
    dataset = dataset_of(records, config, model)
    method = adapter_of(model, number)
    method.place(start_of(model))
    people = ", persons" if unit is not by_itself else ""
    shape = "".join(f", {key} {value}" for key, value in (lora or {}).items())
    name = f"{way.name} ({task}, {kind}{people}{shape})"
    units = len({record.unit for record in records} - {None}) or len(records)
    return Probe(name, way, config, TrainingAtSite(model, method, dataset), units)


def probes(material: Material, all_of_them: bool) -> list[Probe]:
    """Return a probe of every mechanism; for every task too, if all are asked for.

    Otherwise each mechanism is tried on one task, and each task by one mechanism at least.
    """
    if not all_of_them:
        few = [(way, *MODELS[2 * (place % 2)]) for place, way in enumerate(WAYS)]
        few += [(WAYS[1], *model) for model in MODELS[3:]]
        made = [probe(material, *one) for one in few]
        for method in ("core", "bitfit"):
            adapter = {"rank": 8, "method": method}
            made.append(probe(material, WAYS[0], *MODELS[0], lora=adapter))
        return made
    made = [probe(material, way, *model) for way in WAYS for model in MODELS]
    made += [probe(material, way, *MODELS[0], some_persons) for way in WAYS]
    made += [probe(material, WAYS[0], *model, some_persons) for model in MODELS[1:]]
    for lora in ({"rank": 0}, {"rank": 8, "freeze_a": True}, {"rank": 4, "last_layers": 1}):
        made += [probe(material, way, *MODELS[0], lora=lora) for way in WAYS[:2]]
    made += [
        probe(material, way, *MODELS[0], lora={"rank": 8, **lora}, number=number)
        for lora, number in METHODS
        for way in WAYS[:3]
    ]
    return made
