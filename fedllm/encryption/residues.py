"""Residues on the wire: fixed positions, whole bytes, nothing that could lie about a size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.plan import prime_width
from fedllm.errors import PeerError


def to_wire(residues: NDArray[np.uint64], primes: Sequence[int]) -> bytes:
    """Write residues with as many bytes each as their prime needs, little endian.

    Parameters
    ----------
    residues : uint64 (2, primes, N)
        Two polynomials modulo each prime.
    primes : sequence of int
        The moduli.
    """
    octets = residues.astype("<u8", copy=False).view(np.uint8).reshape(*residues.shape, 8)
    return b"".join(
        octets[:, place, :, : prime_width(prime.bit_length())].tobytes()
        for place, prime in enumerate(primes)
    )


def wire_length(primes: Sequence[int], poly_degree: int) -> int:
    """Return the bytes of two polynomials on the wire."""
    return 2 * poly_degree * sum(prime_width(prime.bit_length()) for prime in primes)


def from_wire(blob: memoryview, primes: Sequence[int], poly_degree: int) -> NDArray[np.uint64]:
    """Read residues; the whole check of a foreign ciphertext or key.

    Parameters
    ----------
    blob : memoryview
        Bytes from a peer.
    primes : sequence of int
        The moduli.
    poly_degree : int
        Coefficients of a polynomial, N.

    Returns
    -------
    uint64 (2, primes, N)
        Residues, each below its prime.

    Raises
    ------
    PeerError
        If the length is wrong or a residue is not below its prime.
    """
    if len(blob) != wire_length(primes, poly_degree):
        raise PeerError("a peer sent polynomials of the wrong length")
    residues = np.zeros((2, len(primes), poly_degree), dtype=np.uint64)
    octets = residues.view(np.uint8).reshape(2, len(primes), poly_degree, 8)
    start = 0
    for place, prime in enumerate(primes):
        width = prime_width(prime.bit_length())
        stop = start + 2 * poly_degree * width
        part = np.frombuffer(blob[start:stop], dtype=np.uint8)
        octets[:, place, :, :width] = part.reshape(2, poly_degree, width)
        if residues[:, place].max() >= prime:
            raise PeerError("a peer sent a residue that is not below its modulus")
        start = stop
    return residues
