"""What a mechanism asks of a site's training in one round, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedllm.randomness import RandomStream

# Adam's constants (Kingma and Ba 2015); bounds on its steps rest on them.
ADAM_BETA_1, ADAM_BETA_2 = 0.9, 0.999


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Everything that a site's training depends on besides its records; all of it public.

    Attributes
    ----------
    steps : int
        Optimiser steps; each draws a batch of its own.
    sampling_rate : float
        Probability of each unit (record or person) to be in a batch.
    expected_batch_size : float
        What a batch's sum of gradients is divided by.
    microbatch_size : int
        Records worked on at once, in a private step of one unit; bounds memory, changes no
        result.
    optimizer : {"adam", "sgd"}
        Started anew. "sgd" with one step and learning rate 1 gives minus the gradient.
    learning_rate, head_learning_rate : float
        Step size for adapters, and for the classification head.
    clipping_norm : float
        L2 bound on what one unit adds to a batch's sum; not applied without noise multiplier.
    noise_multiplier : float, optional
        Standard deviation of the noise in units of ``clipping_norm``; none: not private.
    clipping_quantile : float, optional
        Where set, ``clipping_norm`` is where the norm starts, and it moves with each step so
        that this part of the units is within it.
    activation_checkpointing : bool
        Whether trained layers keep only what enters them, and are run again in the backward pass.
    sampled_words : int, optional
        With how many words, on the mean, a token is compared (`fedllm.models.sampled_words`); with
        all when left out.
    """

    steps: int
    sampling_rate: float
    expected_batch_size: float
    microbatch_size: int
    optimizer: Literal["adam", "sgd"]
    learning_rate: float
    head_learning_rate: float
    clipping_norm: float
    noise_multiplier: float | None
    clipping_quantile: float | None = None
    activation_checkpointing: bool = False
    sampled_words: int | None = None


@dataclass(frozen=True, slots=True)
class LocalStatistics:
    """What the site's own operators may look at; computed from records, never sent.

    Attributes
    ----------
    loss : float
        Mean loss of the records seen; NaN if all batches were empty.
    records_seen, empty_batches : int
        Sums over the steps.
    norm_quantiles : tuple of float
        10, 50 and 90 percent of the units' gradient norms before clipping; empty without DP.
    broken_units : dict of str to int
        How often the model or a library broke off at a unit, by kind of error; such a unit
        added nothing.
    problem : str
        What looks wrong with the update otherwise; empty if nothing does.
    """

    loss: float
    records_seen: int
    empty_batches: int
    norm_quantiles: tuple[float, ...]
    broken_units: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LocalResult:
    """A site's update, checked, and statistics that stay at the site.

    Attributes
    ----------
    update : ndarray
        (P,) float32: adapter after training minus before.
    statistics : LocalStatistics
        Private.
    clipping_norm : float
        After the last step; as private as the update is.
    """

    update: NDArray[np.float32]
    statistics: LocalStatistics
    clipping_norm: float


class LocalWork(Protocol):
    """One site's training in one round, from the adapter that the round starts with.

    Nothing that it returns may leave the site but through the mechanism that asked for it.
    """

    @property
    def units(self) -> int:
        """Records or persons at the site."""
        ...

    @property
    def length(self) -> int:
        """Values of an update, P."""
        ...

    def train(
        self, settings: LocalSettings, sampling: RandomStream, noise: RandomStream
    ) -> LocalResult:
        """Take the steps, with noise in each of them if the settings have any."""
        ...

    def gradient_sum(
        self, settings: LocalSettings, sampling: RandomStream
    ) -> tuple[NDArray[np.float64], LocalStatistics]:
        """Return the sum (P,) of one batch's clipped gradients, without any noise."""
        ...
