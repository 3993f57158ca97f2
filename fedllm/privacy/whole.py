"""Privacy of a whole site: its update of a round is clipped and noised as one contribution.

DP-FedAvg (McMahan, Ramage, Talwar, Zhang 2018) with every site in every round. Neighbours differ
in all of one site's records, which are exchanged for any others: both updates lie in a ball of
the clipping norm, so the sum moves by at most twice that norm, and the noise is counted in
units of twice the norm. One record, or one person's records, exchanged at the site is a special
case, so that the ledger can charge the same event for its own unit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.privacy.dpsgd import clipping_weight
from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream


def site_deviation(noise_multiplier: float, clipping_norm: float, noise_share: float) -> float:
    """Return the standard deviation of one site's noise."""
    return noise_multiplier * 2 * clipping_norm * noise_share


def private_update(
    update: NDArray[np.floating[Any]],
    clipping_norm: float,
    noise_multiplier: float,
    noise_share: float,
    noise: RandomStream,
) -> NDArray[np.float64]:
    """Clip an update (P,) to an L2 norm and add this site's share of the noise.

    Parameters
    ----------
    clipping_norm : float
        Largest norm of an update before noise.
    noise_multiplier : float
        Standard deviation of the whole noise over twice the clipping norm.
    noise_share : float
        Part of that standard deviation which this site adds; 1 is the whole.
    noise : RandomStream
        ``RandomStream.secure()`` outside tests.
    """
    values = np.asarray(update, dtype=np.float64)
    norm = float(np.linalg.norm(values))
    values = values * clipping_weight(norm, len(values), clipping_norm)
    deviation = site_deviation(noise_multiplier, clipping_norm, noise_share)
    return values + gaussian_noise(noise, len(values), deviation)
