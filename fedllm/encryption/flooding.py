"""Noise and rounding that a CKKS sum needs before it may leave the key holder.

CKKS decryption returns the message plus an error that depends on the secret key. Whoever
holds the ciphertexts and two such results computes the key (Li and Micciancio 2021, "On the
security of homomorphic encryption on approximate numbers").
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.plan import EncryptionPlan, noise_bound
from fedllm.randomness import RandomStream

_STATISTICAL_BITS = 40


def flooding_deviation(plan: EncryptionPlan) -> float:
    """Return the standard deviation of the noise, in levels of the sum.

    It is ``sqrt(12) * 2**(40 / 2)`` times a bound on the length of the error of one
    ciphertext's slots (Li, Micciancio, Schultz and Sorrell 2022, "Securing approximate
    homomorphic encryption using differential privacy"), for one opened sum a key.
    """
    special = plan.coeff_bits[-1]
    coefficient = noise_bound(plan.poly_degree, plan.ciphertexts, plan.max_sites, special)
    # A slot is the polynomial at a root of unity: the slots' length is sqrt(N) times the
    # coefficients' up to a factor of sqrt(2), and the coefficients' at most sqrt(N) times one.
    error = coefficient * plan.poly_degree / math.sqrt(2.0) * 2.0**-plan.scale_bits
    return math.sqrt(12.0) * 2.0 ** (_STATISTICAL_BITS / 2) * error


def flood_and_round(
    values: NDArray[np.float64], plan: EncryptionPlan, random: RandomStream
) -> NDArray[np.uint64]:
    """Add flooding noise to decrypted slots, round to whole levels and clip to the range.

    Parameters
    ----------
    values : float64 (S,)
        Decrypted slots.
    plan : EncryptionPlan
        A CKKS plan.
    random : RandomStream
        Cryptographic source of the noise.

    Returns
    -------
    uint64 (S,)
        Levels of the sum.
    """
    noisy = values + flooding_deviation(plan) * random.normal(len(values))
    return np.clip(np.rint(noisy), 0, plan.max_sites * plan.top_level).astype(np.uint64)
