"""Random numbers from a cryptographic generator, vectorised.

One class serves both needs: `RandomStream.secure` (key from the operating system) for
everything that privacy rests on, and `RandomStream.seeded` for runs that must repeat
exactly. Both expand a 256-bit key with AES-256 in counter mode (NIST SP 800-38A).
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedllm.canonical import sha256

_CHUNK_BYTES = 1 << 24


class RandomStream:
    """An endless stream of random bytes and the distributions made from it.

    Not safe for use by two threads at once. The key never shows in ``repr`` and the object
    cannot be pickled, so that noise is never drawn twice from a copy.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a RandomStream needs a key of 32 bytes")
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def secure(cls) -> RandomStream:
        """Make a stream that nobody can predict or repeat."""
        return cls(os.urandom(32))

    @classmethod
    def seeded(cls, seed: int, *labels: str | int) -> RandomStream:
        """Make a stream that is the same for the same seed and labels.

        Labels separate uses (site, round, purpose), so that no two of them share numbers.
        Never use it for privacy noise or keys.
        """
        text = "\x1f".join([str(seed), *(f"{type(x).__name__}:{x}" for x in labels)])
        return cls(sha256(b"fedllm.randomness.v1\x1f" + text.encode()))

    def __repr__(self) -> str:
        return "RandomStream(<hidden>)"

    def __reduce__(self) -> tuple[str, ...]:
        raise TypeError("a RandomStream must not be copied between processes")

    def bytes(self, count: int) -> bytes:
        """Return ``count`` random bytes."""
        parts = []
        while count > 0:
            step = min(count, _CHUNK_BYTES)
            parts.append(self._encryptor.update(bytes(step)))
            count -= step
        return b"".join(parts)

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """Return ``count`` integers, uniform on [0, 2**64)."""
        return np.frombuffer(self.bytes(8 * count), dtype=np.uint64).copy()

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` float64 numbers, uniform on [0, 1) in steps of 2**-53."""
        return (self.uint64(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, bound: int, count: int) -> NDArray[np.uint64]:
        """Return ``count`` integers, exactly uniform on [0, bound), by rejection."""
        if not 0 < bound < 2**64:
            raise ValueError("bound must lie in (0, 2**64)")
        limit = (2**64 // bound) * bound
        result = np.empty(0, dtype=np.uint64)
        while len(result) < count:
            draw = self.uint64(count - len(result))
            kept = draw if limit == 2**64 else draw[draw < np.uint64(limit)]
            result = np.concatenate([result, kept])
        return result % np.uint64(bound)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Return the numbers 0 to ``count - 1`` in random order."""
        return np.argsort(self.uint64(count), kind="stable").astype(np.int64)

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        """Choose each of ``population`` items independently with probability ``rate``.

        To the next multiple of 2**-53 below it: never more often than it says.
        """
        return np.flatnonzero(self.uniform(population) + 2.0**-53 <= rate).astype(np.int64)

    def normal(self, count: int, parts: int = 4) -> NDArray[np.float64]:
        """Return ``count`` standard normal float64 numbers.

        Each is the scaled sum of ``parts`` independent Box-Muller normals, which leaves an
        attacker on the floating-point grid far too many pre-images to search (Holohan and
        Braghin 2021, "Secure random sampling in differential privacy"). No two numbers share
        one: four that were mixed from the same four could be taken apart again.
        """
        pairs = (count + 1) // 2
        total = np.zeros(2 * pairs, dtype=np.float64)
        cosines, sines = total[:pairs], total[pairs:]
        for _ in range(parts):
            # One minus a multiple of 2**-53 is exact, and above zero.
            radius = np.sqrt(-2.0 * np.log(1.0 - self.uniform(pairs)))
            # Cosine and sine of an angle from the tangent of its half: one function, not two.
            tangent = np.tan(np.pi * (self.uniform(pairs) - 0.5))
            square = tangent * tangent
            radius /= 1.0 + square
            cosines += radius * (1.0 - square)
            sines += 2.0 * radius * tangent
        return total[:count] / np.sqrt(parts)
