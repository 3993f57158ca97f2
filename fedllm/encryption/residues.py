"""Residues on the wire: in fixed positions, and nothing that could lie about a size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.lattice import packed_length
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


def numbers_to_wire(numbers: NDArray[np.uint64], bits: int) -> bytes:
    """Write numbers below ``2**bits``: the whole bytes of all, then the bits left of all.

    Parameters
    ----------
    numbers : uint64 (count,)
        Little endian on the wire.
    bits : int
        1 to 64.
    """
    whole, rest = divmod(bits, 8)
    octets = numbers.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    written = octets[:, :whole].tobytes()
    if rest:
        left = np.unpackbits(octets[:, whole : whole + 1], axis=1, count=rest, bitorder="little")
        written += np.packbits(left, bitorder="little").tobytes()
    return written


def numbers_from_wire(blob: memoryview, count: int, bits: int) -> NDArray[np.uint64]:
    """Read numbers; the whole check of foreign ones.

    Returns
    -------
    uint64 (count,)
        Each below ``2**bits``: there is no way to write more.

    Raises
    ------
    PeerError
        If the length is wrong, or there is something beyond the last bit.
    """
    if len(blob) != packed_length(count, bits):
        raise PeerError("a peer sent hidden levels of the wrong length")
    whole, rest = divmod(bits, 8)
    numbers = np.zeros(count, dtype=np.uint64)
    octets = numbers.view(np.uint8).reshape(count, 8)
    octets[:, :whole] = np.frombuffer(blob[: count * whole], dtype=np.uint8).reshape(count, whole)
    if rest:
        left = np.unpackbits(
            np.frombuffer(blob[count * whole :], dtype=np.uint8), bitorder="little"
        )
        if left[count * rest :].any():
            raise PeerError("a peer sent hidden levels with something behind them")
        octets[:, whole] = np.packbits(
            left[: count * rest].reshape(count, rest), axis=1, bitorder="little"
        )[:, 0]
    return numbers
