"""Checks of whole rounds: what the opened sums say against what the ledgers say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.audit.selftest.building import Setting, build, gradients_of_sites
from fedllm.audit.selftest.federation import RUN, Federation
from fedllm.audit.selftest.material import (
    BATCH,
    RECORDS,
    ROUNDS,
    SITES,
    Material,
    Vector,
    clipped,
)
from fedllm.audit.selftest.statistics import binomial, first, unrelated, variance
from fedllm.encryption.quantise import Quantiser
from fedllm.privacy.accounting.events import PoissonDiscreteGaussian, PoissonGaussian
from fedllm.privacy.ledger.audit import read_state

Sampled = PoissonGaussian | PoissonDiscreteGaussian


@dataclass
class Observed:
    """A finished run, and what can be read out of its opened sums.

    Attributes
    ----------
    federation : Federation
        After its rounds.
    drawn : int64 array (rounds, sites * records)
        How many batches of each round every record was in.
    noise : list of float64 array (P,)
        What the sum of a round holds beside the records' clipped gradients, in units of the
        clipping norm; it lies in a space of ``freedom`` dimensions.
    readable : bool
        Whether the sums decompose into whole numbers of clipped gradients.
    """

    federation: Federation
    drawn: NDArray[np.int64]
    noise: list[Vector]
    freedom: int
    readable: bool

    @cached_property
    def events(self) -> dict[str, list[Sampled]]:
        """What each site's ledger says of the run."""
        found = {name: self.federation.ledger(name).events_of_run(RUN) for name in SITES}
        return {
            name: [event for event in events if isinstance(event, Sampled)]
            for name, events in found.items()
        }

    @property
    def step(self) -> float:
        """Distance of two levels of the quantiser, in units of the clipping norm of a sum."""
        config, bounds = self.federation.config, self.federation.terms.bounds
        largest = float(np.max(Quantiser(bounds, config.encryption.bits).step))
        return largest * BATCH / config.training.learning_rate


# One step a round, whose noise the sites share.
SHARED: dict[str, dict[str, Any]] = {
    "privacy": {"noise": "distributed"},
    "training": {"local_steps": 1, "sampling_rate": BATCH / RECORDS},
    # So little noise needs fine levels.
    "encryption": {"bits": 20},
}


def observe(
    material: Material,
    like: Federation | None = None,
    sections: Mapping[str, dict[str, Any]] | None = None,
    rounds: int = ROUNDS,
) -> Observed:
    """Run rounds of a federation; with the same keys as another one, if given."""
    config = material.config("bert", None, **(sections or {}))
    federation = build(material, config, Setting(identities=like.identities if like else None))
    each = clipped(gradients_of_sites(material, federation.config), 1.0)
    basis, *_ = np.linalg.svd(each.T, full_matrices=False)
    inverse = np.linalg.pinv(each.T)
    drawn, noise, readable = [], [], True
    for number in range(1, rounds + 1):
        mean = federation.round(number).mean
        total = -mean * len(SITES) * BATCH / config.training.learning_rate
        weights = inverse @ total
        readable &= bool(np.abs(weights - np.round(weights)).max() < 0.4)
        drawn.append(np.round(weights).astype(np.int64))
        noise.append(total - basis @ (basis.T @ total))
    return Observed(federation, np.stack(drawn), noise, len(total) - len(each), readable)


def noise_of_sums(observed: Observed, shares: int = 1) -> str | None:
    """The noise in an opened sum is that which the ledgers were charged for.

    ``shares`` says how many sites' noise makes up the whole: known from how the run was set up
    and not asked of the code under test.
    """
    events = [event for name in SITES for event in observed.events[name][:1]]
    if len(events) < len(SITES):
        return "a ledger says nothing of the run's noise"
    right = sum(event.steps * event.noise_multiplier**2 for event in events) / shares
    # Discrete noise is what the ledger says in steps; it is worth a little less.
    grid = [event.share_deviation for event in events if isinstance(event, PoissonDiscreteGaussian)]
    if grid:
        right = sum(float(deviation) ** 2 for deviation in grid) * observed.step**2
    # Stochastic rounding has a variance of at most a quarter of a squared step.
    rounding = len(SITES) * observed.step**2 / 4
    values = np.concatenate(observed.noise)
    return first(
        variance(
            values, right, "noise of a sum", extra=rounding, freedom=observed.freedom * ROUNDS
        ),
        unrelated(observed.noise, observed.freedom, "noise of different rounds"),
    )


def shares_as_charged(federation: Federation) -> str | None:
    """Against everyone else colluding, the ledgers count one site's share of the noise alone."""
    shares = federation.config.rounds.min_sites
    for name in SITES:
        for charge in read_state(federation.ledger_file(name)).reservations.values():
            for event, alone in zip(charge.events, charge.colluder_events, strict=True):
                if not (isinstance(event, PoissonGaussian) and isinstance(alone, PoissonGaussian)):
                    return f"the ledger of {name} does not say how noise was shared"
                share = replace(event, noise_multiplier=event.noise_multiplier / np.sqrt(shares))
                same = replace(alone, noise_multiplier=share.noise_multiplier) == share
                if not same or alone.noise_multiplier > share.noise_multiplier * (1 + 1e-9):
                    return f"the ledger of {name} counts more noise than its site's share"
    return None


def noise_is_secret(observed: Observed, twin: Observed) -> str | None:
    """The same run once more draws other batches and other noise: nothing has a fixed seed."""
    if np.array_equal(observed.drawn[: len(twin.drawn)], twin.drawn):
        return "the same run drew the same batches again: the sampling can be predicted"
    pairs = [observed.noise[0], twin.noise[0], observed.noise[1], twin.noise[1]]
    return unrelated(pairs, observed.freedom, "noise of a run and of the same run again")


def sampling_as_charged(observed: Observed) -> str | None:
    """Records are drawn as often as the ledgers say."""
    if not observed.readable:
        return "an opened sum is not a sum of records' clipped gradients and noise"
    rates = {name: {event.sampling_rate for event in observed.events[name]} for name in SITES}
    if any(len(found) != 1 for found in rates.values()) or len(set.union(*rates.values())) != 1:
        return "the ledgers of equal sites do not name one sampling rate"
    (rate,) = rates[SITES[0]]
    draws = RECORDS * sum(event.steps for name in SITES for event in observed.events[name])
    drawn = int(observed.drawn.sum())
    problems = [binomial(drawn, draws, rate, "records drawn against the ledgers")]
    totals = observed.drawn.reshape(ROUNDS, len(SITES), RECORDS).sum(axis=2)
    steps = observed.federation.config.training.local_steps
    if steps > 1 and (totals == totals[:1]).all():
        # Four binomial totals of a site are equal with probability 0.0004, and three sites' are;
        # of one step each it would happen too often.
        problems.append("each site drew equally many records in all rounds")
    if steps == 1 and observed.drawn.max() > 1:
        problems.append("a record counted more than once in a step")
    return first(*problems)
