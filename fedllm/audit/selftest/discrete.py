"""Checks of discrete noise: integers on the run's grid, and what the ledger says of them."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.audit.selftest.federation import Federation
from fedllm.audit.selftest.material import BATCH, RECORDS, SITES
from fedllm.audit.selftest.statistics import binomial, centred, first, variance
from fedllm.mechanisms.discrete import DiscreteSharedNoise, IntegerGrid
from fedllm.privacy.accounting.events import PoissonDiscreteGaussian
from fedllm.privacy.ledger.audit import read_state
from fedllm.randomness import RandomStream

# One step a round; the sites share integer noise.
DISCRETE: dict[str, dict[str, Any]] = {
    "privacy": {"noise": "distributed", "distribution": "discrete_gaussian"},
    "training": {"local_steps": 1, "sampling_rate": BATCH / RECORDS, "learning_rate": 1.0},
    "encryption": {"bits": 20},
}
_VALUES = 200_000
# So little noise that a share has the fewest grid steps there are, and rounding shows most.
_LITTLE_NOISE = 1e-6


def rounding_and_noise(federation: Federation) -> str | None:
    """A site's integers are its sum, rounded at random to the grid, plus exact noise."""
    grid = _grid(federation)
    norm = federation.config.privacy.clipping_norm
    deviation = grid.share(_LITTLE_NOISE)
    whole = np.arange(_VALUES, dtype=np.float64) % 1001 - 500
    for part in (0.0, 0.25):
        # In grid steps, and with the sign of a descent.
        total = -(whole + part) * norm / grid.clipping_steps
        levels = grid.noised_levels(total, norm, _LITTLE_NOISE, RandomStream.secure())
        if not np.issubdtype(levels.dtype, np.integer):
            return "noised sums are not integers"
        left = levels.astype(np.float64) - grid.half - whole - part
        # A discrete Gaussian's moments are no larger than a Gaussian's; rounding is a coin,
        # whose moments those of a Gaussian of variance 1/4 bound (Hoeffding).
        if problem := first(
            centred(left, deviation**2 + 0.25, "rounded sums with discrete noise"),
            variance(left, deviation**2, "discrete noise of a site", extra=0.25),
        ):
            return problem
        if part == 0.0 and (problem := _shape(left, deviation)):
            return problem
    return None


def _shape(drawn: NDArray[np.float64], deviation: int) -> str | None:
    support = np.arange(-40 * deviation, 40 * deviation + 1)
    weights = np.exp(-(support**2) / (2.0 * deviation**2))
    weights /= weights.sum()
    even = float(weights[support % 2 == 0].sum())
    near = float(weights[np.abs(support) <= deviation].sum())
    return first(
        binomial(int(np.count_nonzero(drawn % 2 == 0)), _VALUES, even, "even discrete noise"),
        binomial(
            int(np.count_nonzero(np.abs(drawn) <= deviation)),
            _VALUES,
            near,
            "discrete noise within one standard deviation",
        ),
    )


def noise_as_charged(federation: Federation) -> str | None:
    """The ledgers' words on discrete noise agree with the grid, and the noise is enough."""
    terms, shares = federation.terms, federation.config.rounds.min_sites
    grid, length = _grid(federation), terms.update_length
    for name in SITES:
        for charge in read_state(federation.ledger_file(name)).reservations.values():
            seen = [(event, shares) for event in charge.events]
            seen += [(event, 1) for event in charge.colluder_events]
            for event, drawn in seen:
                if not isinstance(event, PoissonDiscreteGaussian):
                    return f"the ledger of {name} does not say that its noise is discrete"
                if (event.clipping_steps, event.length) != (grid.clipping_steps, length):
                    return f"the ledger of {name} counts noise on another grid than the updates"
                if event.shares != drawn or not _enough(event):
                    return f"the ledger of {name} says more noise than was drawn"
    # The same at noise of a usual size.
    if not _enough(grid.event(0.25, 1.0)) or not _enough(grid.event(0.25, 1.0, alone=True)):
        return "shares of discrete noise do not hide a rounded contribution"
    return None


def _grid(federation: Federation) -> IntegerGrid:
    return DiscreteSharedNoise(federation.terms.config).grid(federation.terms.update_length)


def _enough(event: PoissonDiscreteGaussian) -> bool:
    # Rounding at random moves a contribution of c steps to a squared length of c**2 + P/4 in
    # the mean, at worst; noise must be that many times the multiplier at the very least.
    moved = sqrt(event.clipping_steps**2 + event.length / 4)
    return sqrt(event.shares) * event.share_deviation >= event.noise_multiplier * moved
