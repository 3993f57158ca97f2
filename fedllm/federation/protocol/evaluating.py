"""Evaluation at the sites: held-out records, noised sums, the same channel as updates.

Each held-out unit (record or person) gives a vector, such as (1, loss, right), every entry in
[0, 1]; the task says which. Sites send the noised sum of theirs, encrypted and masked. What is
opened is the sum over sites, from which the means follow. It is charged as one Gaussian mechanism
on all units: adding or removing a unit moves the sum by at most the square root of its entries.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RunConfig
from fedllm.data.records import Record
from fedllm.errors import ConfigError
from fedllm.federation.protocol.messages import Purpose
from fedllm.federation.protocol.terms import noise_share
from fedllm.privacy.accounting.calibration import solve_noise_multiplier
from fedllm.privacy.accounting.events import Event, Gaussian, NonPrivate
from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream
from fedllm.tasks import scores as bounded
from fedllm.tasks import task_of

Bounds = tuple[tuple[int, float], ...]

# Far above any site's sum; a level is then 1/32 of a record.
_LARGEST_SUM = float(2**18)
_BITS = 24


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


def sum_shape(config: RunConfig, purpose: Purpose, length: int, bounds: Bounds) -> SumShape:
    """Return the shape of a round's vectors.

    Parameters
    ----------
    purpose : {"update", "evaluation"}
        Of the round.
    length, bounds
        Of the adapter, for an update.
    """
    if purpose == "update":
        return SumShape(length, config.encryption.bits, bounds)
    entries = _entries(config)
    return SumShape(entries, _BITS, ((entries, _LARGEST_SUM),))


def evaluation_rounds(config: RunConfig) -> tuple[int, ...]:
    """Return the rounds after which the sites evaluate: every k-th one, and the last."""
    every, last = config.evaluation.every, config.rounds.count
    if not every:
        return ()
    return tuple(number for number in range(1, last + 1) if number % every == 0 or number == last)


def evaluation_event(config: RunConfig) -> Event:
    """Return what one evaluation does to a site's units, in the eyes of who sees the sum.

    Raises
    ------
    ConfigError
        If the run does not evaluate at the sites.
    """
    count = len(evaluation_rounds(config))
    if not count:
        raise ConfigError("the run does not evaluate at the sites", "set evaluation.every")
    if not config.private:
        return NonPrivate()
    return Gaussian(_noise_multiplier(config.evaluation.epsilon, config.privacy.delta, count))


def planned_events(config: RunConfig) -> tuple[Event, ...]:
    """Return what all evaluations of a private run will have cost; nothing without any."""
    count = len(evaluation_rounds(config))
    if not count or not config.private:
        return ()
    event = evaluation_event(config)
    return (Gaussian(event.noise_multiplier, count),) if isinstance(event, Gaussian) else (event,)


def colluder_event(config: RunConfig, event: Event) -> Event | None:
    """Return the same event for everyone else colluding; None where it is no other."""
    if config.privacy.noise == "local" or not isinstance(event, Gaussian):
        return None
    return Gaussian(event.noise_multiplier * noise_share(config), event.count)


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
) -> NDArray[np.float32]:
    """Return a site's vector: the sum over its held-out units, with its part of the noise.

    Parameters
    ----------
    scores : float64 array (U, S)
        For each held-out unit the mean of its records' scores; U may be 0.
    noise : RandomStream
        Cryptographic for a private run.

    Returns
    -------
    float32 array
        The count, and for each of the task's scores its sum in units of the limit.
    """
    total = bounded.unit_vectors(task_of(config.task).site_scores, scores).sum(axis=0)
    total += gaussian_noise(noise, len(total), _deviation(config))
    return np.clip(total, -_LARGEST_SUM, _LARGEST_SUM).astype(np.float32)


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
        ``loss_noise``, its standard deviation by noise alone. Empty where the noise leaves no
        positive number of units.
    """
    deviation = _deviation(config) * sqrt(sites)
    return bounded.means(task_of(config.task).site_scores, total, deviation)


def _entries(config: RunConfig) -> int:
    return bounded.entries(task_of(config.task).site_scores)


def _deviation(config: RunConfig) -> float:
    event = evaluation_event(config)
    if not isinstance(event, Gaussian):
        return 0.0
    return event.noise_multiplier * noise_share(config) * sqrt(_entries(config))


@lru_cache(maxsize=64)
def _noise_multiplier(epsilon: float, delta: float, count: int) -> float:
    return solve_noise_multiplier(epsilon, delta, 1.0, count)
