"""Evaluation at the sites: held-out records, noised sums, the same channel as updates.

Each held-out unit (record or person) gives a vector, such as (1, loss, right), every entry in
[0, 1]; the task says which. Where the run tells quality by part, the same follows for each label or
group that it names. Sites send the noised sum of theirs, encrypted and masked. What is opened is
the sum over sites, from which the means follow. `fedllm.mechanisms.EvaluationSums` says what it
costs.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RunConfig
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record
from fedllm.federation.protocol.round_statement import Purpose
from fedllm.mechanisms import EvaluationSums, UnitVector
from fedllm.randomness import RandomStream
from fedllm.tasks import scores as bounded
from fedllm.tasks import task_of
from fedllm.tasks.scores import UnitScores

Bounds = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SumShape:
    """What kind of vector the sites of a round send.

    Attributes
    ----------
    length : int
        Its values.
    bits : int
        Quantisation of one value.
    bounds : tuple of (int, float)
        For consecutive segments their length and the bound of one value.
    """

    length: int
    bits: int
    bounds: Bounds


def sum_shape(
    config: RunConfig, purpose: Purpose, bounds: Bounds, labels: Sequence[str]
) -> SumShape:
    """Return the shape of a round's vectors.

    Parameters
    ----------
    purpose : {"update", "evaluation"}
        Of the round.
    bounds
        Of an update's segments.
    labels : sequence of str
        The public labels of the run.

    Raises
    ------
    ConfigError
        If an evaluation's noise does not fit its levels.
    """
    if purpose == "update":
        return SumShape(sum(size for size, _ in bounds), config.encryption.bits, bounds)
    unit = unit_vector(config, labels)
    sums = EvaluationSums(config)
    if sums.rounds:
        sums.room(unit.norm)
    return SumShape(unit.length, EvaluationSums.BITS, ((unit.length, EvaluationSums.LARGEST_SUM),))


def part_names(config: RunConfig, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the parts by which a run tells quality at the sites; nothing where it tells none."""
    asked = config.evaluation
    return tuple(labels) if asked.parts == "label" else asked.groups or ()


def unit_vector(config: RunConfig, labels: Sequence[str]) -> UnitVector:
    """Return how many values a held-out unit adds, and how long they may be in the L2 norm."""
    scores, parts = task_of(config).site_scores, len(part_names(config, labels))
    length = bounded.entries(scores) * (1 + parts)
    return UnitVector(length, bounded.longest(scores, parts))


def parts_of(
    config: RunConfig, labels: Sequence[str], dataset: EncodedDataset
) -> NDArray[np.int64] | None:
    """Return the part that each record is in, (N,), -1 for none that is told; None without parts.

    Whatever a record says it is of, the answer is one of these.
    """
    names = part_names(config, labels)
    if not names:
        return None
    if config.evaluation.parts == "label":
        # In a task whose records have one label each, it is the target.
        found = dataset.targets.astype(np.int64)
    else:
        number_of = {name: number for number, name in enumerate(names)}
        groups = dataset.groups or (None,) * len(dataset)
        found = np.array([number_of.get(group or "", -1) for group in groups], dtype=np.int64)
    return np.where((found >= 0) & (found < len(names)), found, -1)


@dataclass(frozen=True)
class Holdout:
    """Which records of a site are kept from training.

    The same in every run of a task, and all of a smaller fraction are in a larger one. A task reads
    other columns than another: where no person is named, it holds out other records of a source.

    Parameters
    ----------
    key : bytes
        Secret of the site: nobody else can tell who is held out.
    fraction : float
        Of the units.
    """

    key: bytes
    fraction: float

    def split(self, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
        """Return the records to train on and those held out; a person is never in both."""
        kept: list[Record] = []
        held: list[Record] = []
        for record in records:
            (held if self._holds(record) else kept).append(record)
        return kept, held

    def _holds(self, record: Record) -> bool:
        said = record.about if record.unit is None else record.unit
        about = record.canonical() if said is None else said.encode()
        tag = hmac.digest(self.key, about, "sha256")
        return int.from_bytes(tag[:8], "big") < self.fraction * 2.0**64

    def __repr__(self) -> str:
        return f"Holdout(<hidden>, {self.fraction})"


def noised_sum(
    config: RunConfig, labels: Sequence[str], scores: UnitScores, noise: RandomStream
) -> NDArray[np.float64]:
    """Return a site's vector: the sum over its held-out units, with its part of the noise.

    Parameters
    ----------
    labels : sequence of str
        The public labels of the run.
    scores : UnitScores
        What the units score; there may be none.
    noise : RandomStream
        Cryptographic for a private run.

    Returns
    -------
    float64 array
        The count, and for each of the task's scores its sum in units of the limit; and the same
        for each part that is told.
    """
    unit, sums = unit_vector(config, labels), EvaluationSums(config)
    parts = len(part_names(config, labels))
    vectors = bounded.vectors(task_of(config).site_scores, scores, parts)
    return sums.noised(sums.total(vectors, unit), unit.norm, noise)


@dataclass(frozen=True)
class SiteQuality:
    """What an opened sum says.

    Attributes
    ----------
    whole : dict
        ``units``; for each of the task's scores, such as ``loss`` in nats, its mean and, as
        ``loss_noise``, its standard deviation by noise alone; and what the task makes of these.
        Empty where the noise leaves no positive number of units.
    parts : dict of dict
        The same for each part that is told, by name, without figures of which the noise leaves
        too little; empty where it does so of all.
    """

    whole: dict[str, float]
    parts: dict[str, dict[str, float]]


def read_sum(
    config: RunConfig, labels: Sequence[str], total: NDArray[np.float64], sites: int
) -> SiteQuality:
    """Return the means that an opened sum says, and how far noise moves them.

    Parameters
    ----------
    labels : sequence of str
        The public labels of the run.
    total : float64 array
        Sum over ``sites`` sites of what `noised_sum` returned.
    """
    deviation = EvaluationSums(config).deviation(unit_vector(config, labels).norm) * sqrt(sites)
    task, names = task_of(config), part_names(config, labels)
    whole, *blocks = (
        task.site_figures(bounded.means(task.site_scores, block, deviation))
        for block in np.split(total, 1 + len(names))
    )
    parts = {
        name: bounded.told(task.site_scores, found)
        for name, found in zip(names, blocks, strict=True)
    }
    return SiteQuality(whole, parts)
