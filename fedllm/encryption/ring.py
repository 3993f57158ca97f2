"""Products in the ring of integers modulo ``X^N + 1`` and a power of two."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_LIMBS = 4


def public_elements(seed: bytes, block: int, count: int, degree: int) -> NDArray[np.uint64]:
    """Expand a public seed to uniform ring elements modulo ``2**64`` by SHAKE128 (FIPS 202).

    Parameters
    ----------
    seed : bytes
        The same at all parties.
    block : int
        Which block of elements.
    count, degree : int
        Elements, and coefficients of each.

    Returns
    -------
    uint64 (count, degree)
        Cut to any lower power of two they are uniform too.
    """
    stream = hashlib.shake_128(seed + block.to_bytes(8, "little")).digest(8 * count * degree)
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64).reshape(count, degree)


def multiply(elements: NDArray[np.uint64], short: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Multiply ring elements with a short one, exactly.

    Coefficients are cut into four limbs of 16 bits, two of which make a complex number; a
    Fourier transform twisted by the roots of -1 multiplies modulo ``X^N + 1``. The error of each
    coefficient in double precision is below ``2**-45.5`` times the norms of both factors
    (Brent, Percival and Zimmermann 2007): below 1/16 for ``|short| <= 2**19`` (L2, N up to
    4096), where rounding needs it below 1/2.

    Parameters
    ----------
    elements : uint64 (k, N)
        Modulo ``2**64``.
    short : int64 (N,)
        L2 norm at most ``2**19``.

    Returns
    -------
    uint64 (k, N)
        The products, modulo ``2**64``.
    """
    count, degree = elements.shape
    twist = np.exp(np.arange(degree) * (1j * np.pi / degree))
    factor = np.fft.fft(short * twist)
    limbs = elements.astype("<u8", copy=False).view("<u2").reshape(count, degree, _LIMBS)
    product = np.zeros((count, degree), dtype=np.uint64)
    for low in range(0, _LIMBS, 2):
        pair = limbs[:, :, low] + 1j * limbs[:, :, low + 1]
        pair = np.fft.ifft(np.fft.fft(pair * twist) * factor) * twist.conj()
        for limb, part in ((low, pair.real), (low + 1, pair.imag)):
            # A negative number wraps around to its residue.
            product += np.rint(part).astype(np.int64).view(np.uint64) << np.uint64(16 * limb)
    return product
