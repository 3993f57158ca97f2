"""Parameters of a lattice mask: a long vector hidden by a short secret.

A site hides its packed levels x as ``y = a s + e + step * x`` in the ring
``Z_q[X] / (X^N + 1)``: ``a`` is public, the secret ``s`` (N numbers) and the error ``e`` are
discrete Gaussians. Only ``s`` needs pairwise masks and encryption. From the sums of y and of s
follows the sum of x, exactly, since ``step`` has room for the sum of the errors. The idea is
that of Bell et al. 2023 ("ACORN"); ``docs/encryption.md`` says why it is safe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Standard deviation of secrets and errors. Whoever sees sums of them over two honest sites or
# more is left with half of it at least (Kim, Lee, Seo and Song 2023), above the 3.2 of the
# published tables.
DEVIATION = 7
_FAILURE_BITS = 40
# Coefficients are held in unsigned words.
_WORD_BITS = 64


@dataclass(frozen=True)
class LatticeMask:
    """How the levels of an update are hidden.

    Attributes
    ----------
    degree : int
        Ring dimension N, the length of a secret.
    modulus_bits : int
        Binary logarithm of the modulus q of a coefficient.
    radix : int
        One more than the largest sum of levels.
    levels_per_coefficient : int
        Levels packed in one coefficient, as digits in that radix.
    coefficients : int
        Coefficients of y. One more level than the vector has counts updates.
    error_bound : int
        Bound on the sum of errors, in each coefficient.
    secret_bound : int
        Bound on the sum of secrets, in each coefficient.
    """

    degree: int
    modulus_bits: int
    radix: int
    levels_per_coefficient: int
    coefficients: int
    error_bound: int
    secret_bound: int

    @property
    def step(self) -> int:
        """Distance of neighbouring packed levels; the sum of errors is within half of it."""
        return 2 * self.error_bound + 1

    @property
    def secret_bits(self) -> int:
        """Bits of a field that holds a sum of secrets and its sign."""
        return (2 * self.secret_bound + 1).bit_length()

    @property
    def hidden_bytes(self) -> int:
        """Bytes of y on the wire."""
        return packed_length(self.coefficients, self.modulus_bits)


def lattice_masks(
    length: int, max_sites: int, top_level: int, modulus_limits: Mapping[int, int]
) -> Iterator[LatticeMask]:
    """Yield the smallest lattice mask of each ring for exact sums of ``max_sites`` updates.

    Of rings whose secret is shorter than the update.

    Parameters
    ----------
    length : int
        Levels of an update, P.
    max_sites : int
        Most updates in one sum.
    top_level : int
        Largest level of one update.
    modulus_limits : mapping of int to int
        For each ring dimension the bits of modulus that are secure.
    """
    radix = max_sites * top_level + 1
    for degree, limit in modulus_limits.items():
        if degree >= length:
            break
        candidates = [
            _lattice_mask(degree, length, max_sites, radix, packed)
            for packed in range(1, _WORD_BITS // (radix - 1).bit_length() + 1)
        ]
        fitting = [c for c in candidates if c.modulus_bits <= min(limit, _WORD_BITS)]
        if fitting:
            yield min(fitting, key=lambda mask: (mask.hidden_bytes, mask.modulus_bits))


def _lattice_mask(degree: int, length: int, max_sites: int, radix: int, packed: int) -> LatticeMask:
    coefficients = -(-(length + 1) // packed)
    error_bound = sum_bound(max_sites, coefficients)
    return LatticeMask(
        degree=degree,
        modulus_bits=((2 * error_bound + 1) * radix**packed - 1).bit_length(),
        radix=radix,
        levels_per_coefficient=packed,
        coefficients=coefficients,
        error_bound=error_bound,
        secret_bound=sum_bound(max_sites, degree),
    )


def sum_bound(addends: int, coordinates: int) -> int:
    """Bound all coordinates of a sum of discrete Gaussian vectors, but for a chance of 2**-40.

    A discrete Gaussian on the integers is sub-Gaussian with its own deviation (Canonne, Kamath,
    Steinke 2020), so a sum of n passes B with probability at most ``2 exp(-B^2 / (2 n s^2))``.
    Integers alone, so that every machine finds the same.

    Parameters
    ----------
    addends : int
        Vectors in the sum.
    coordinates : int
        Length of the vectors.
    """
    bits = _FAILURE_BITS + (2 * coordinates).bit_length()
    # The natural logarithm of 2 is below .6932.
    return math.isqrt(2 * addends * DEVIATION**2 * bits * 6932 // 10_000) + 1


def packed_length(count: int, bits: int) -> int:
    """Return the bytes that ``count`` numbers of ``bits`` bits take on the wire."""
    whole, rest = divmod(bits, 8)
    return count * whole + -(-count * rest // 8)
