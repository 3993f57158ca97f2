"""Evaluation at the sites: held-out records, noised sums, the same channel as updates.

Each held-out unit (record or person) gives a vector, such as (1, loss, right), every entry in
[0, 1]; the task says which. Sites send the noised sum of theirs, encrypted and masked. What is
opened is the sum over sites, from which the means follow. `fedllm.mechanisms.EvaluationSums` says
what it costs.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RunConfig
from fedllm.data.records import Record
from fedllm.federation.protocol.round_statement import Purpose
from fedllm.mechanisms import EvaluationSums
from fedllm.randomness import RandomStream
from fedllm.tasks import scores as bounded
from fedllm.tasks import task_of

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


def sum_shape(config: RunConfig, purpose: Purpose, bounds: Bounds) -> SumShape:
    """Return the shape of a round's vectors.

    Parameters
    ----------
    purpose : {"update", "evaluation"}
        Of the round.
    bounds
        Of an update's segments.

    Raises
    ------
    ConfigError
        If an evaluation's noise does not fit its levels.
    """
    if purpose == "update":
        return SumShape(sum(size for size, _ in bounds), config.encryption.bits, bounds)
    entries = _entries(config)
    sums = EvaluationSums(config)
    if sums.rounds:
        sums.room(entries)
    return SumShape(entries, EvaluationSums.BITS, ((entries, EvaluationSums.LARGEST_SUM),))


@dataclass(frozen=True)
class Holdout:
    """Which records of a site are kept from training, the same in every run.

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
        about = record.canonical() if record.unit is None else record.unit.encode()
        tag = hmac.digest(self.key, about, "sha256")
        return int.from_bytes(tag[:8], "big") < self.fraction * 2.0**64

    def __repr__(self) -> str:
        return f"Holdout(<hidden>, {self.fraction})"


def noised_sum(
    config: RunConfig, scores: NDArray[np.float64], noise: RandomStream
) -> NDArray[np.float64]:
    """Return a site's vector: the sum over its held-out units, with its part of the noise.

    Parameters
    ----------
    scores : float64 array (U, S)
        For each held-out unit the mean of its records' scores; U may be 0.
    noise : RandomStream
        Cryptographic for a private run.

    Returns
    -------
    float64 array
        The count, and for each of the task's scores its sum in units of the limit.
    """
    total = bounded.unit_vectors(task_of(config.task).site_scores, scores).sum(axis=0)
    return EvaluationSums(config).noised(total, noise)


def read_sum(config: RunConfig, total: NDArray[np.float64], sites: int) -> dict[str, float]:
    """Return the means that an opened sum says, and how far noise moves them.

    Parameters
    ----------
    total : float64 array
        Sum over ``sites`` sites of what `noised_sum` returned.

    Returns
    -------
    dict
        ``units``; for each of the task's scores, such as ``loss`` in nats, its mean and, as
        ``loss_noise``, its standard deviation by noise alone; and what the task makes of these.
        Empty where the noise leaves no positive number of units.
    """
    deviation = EvaluationSums(config).deviation(len(total)) * sqrt(sites)
    task = task_of(config.task)
    return task.site_figures(bounded.means(task.site_scores, total, deviation))


def _entries(config: RunConfig) -> int:
    return bounded.entries(task_of(config.task).site_scores)
