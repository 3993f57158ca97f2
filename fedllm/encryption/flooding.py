"""Noise and rounding that a CKKS sum needs before it may leave the key holder.

CKKS decryption returns the message plus an error that depends on the secret key. Whoever
holds the ciphertexts and two such results computes the key (Li and Micciancio 2021, "On the
security of homomorphic encryption on approximate numbers").
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.plan import EncryptionPlan
from fedllm.randomness import RandomStream

_STATISTICAL_BITS = 40


def flooding_deviation(plan: EncryptionPlan) -> float:
    """Return the standard deviation of the noise, in levels of the sum.

    It is ``sqrt(12) * 2**(40 / 2)`` times a bound on the length of the error of one
    ciphertext's slots (Li, Micciancio, Schultz and Sorrell 2022, "Securing approximate
    homomorphic encryption using differential privacy"), for one opened sum a key.

    The error comes from rounding when the special prime is dropped: a term of variance 1/12
    and N of them that the ternary secret multiplies, in each of N coefficients of each
    addend. Half as much again covers its spread and the small terms. A slot is the polynomial
    at a root of unity, so the real parts of N/2 slots have at most ``sqrt(N / 2)`` times the
    length of the coefficients.
    """
    degree = plan.poly_degree
    square = 1.5 * plan.max_sites * degree * (degree + 1) / 12
    error = math.sqrt(square * degree / 2) * 2.0**-plan.scale_bits
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
