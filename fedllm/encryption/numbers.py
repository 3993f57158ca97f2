"""Prime numbers for the number-theoretic transforms of BFV and CKKS."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def is_prime(number: int) -> bool:
    """Say whether ``number`` below 2**64 is prime.

    Miller-Rabin with bases that are proven for this range (Sorenson and Webster 2015).
    """
    if number < 2:
        return False
    for witness in _WITNESSES:
        if number % witness == 0:
            return number == witness
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(number, witness, odd, twos) for witness in _WITNESSES)


def _passes(number: int, witness: int, odd: int, twos: int) -> bool:
    power = pow(witness, odd, number)
    if power in (1, number - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False


def transform_prime(bits: int, poly_degree: int, avoid: Sequence[int] = ()) -> int:
    """Return the largest prime of exactly ``bits`` bits that is 1 modulo ``2 * poly_degree``.

    Primes in ``avoid`` are passed over. Returns 0 when there is none.
    """
    step = 2 * poly_degree
    candidate = ((1 << bits) - 1) // step * step + 1
    if candidate >= 1 << bits:
        candidate -= step
    while candidate > 1 << (bits - 1):
        if candidate not in avoid and is_prime(candidate):
            return candidate
        candidate -= step
    return 0


@lru_cache(maxsize=256)
def coefficient_primes(bits: tuple[int, ...], poly_degree: int) -> tuple[int, ...]:
    """Return the primes that Microsoft SEAL's ``CoeffModulus::Create`` picks for these bit sizes.

    For a size that occurs k times it takes the k largest such primes, the smallest first.
    A size that has too few gives 0.
    """
    left: dict[int, list[int]] = {}
    for size in bits:
        found = left.setdefault(size, [])
        found.append(transform_prime(size, poly_degree, found))
    return tuple(left[size].pop() for size in bits)
