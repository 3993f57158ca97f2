"""Turn an update into integer levels and the sum of levels back into a sum of updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.errors import ConfigError, TrainingError
from fedllm.randomness import RandomStream

_BLOCK = 1 << 18


class Quantiser:
    """Unbiased stochastic rounding to ``2**bits - 1`` levels between minus and plus a bound.

    Level ``2**(bits-1) - 1`` stands for zero exactly, so that parameters that did not move
    add no rounding noise.

    Parameters
    ----------
    bounds : float32 (P,) or sequence of (length, bound)
        Largest magnitude of each parameter, one by one or for consecutive segments.
    bits : int
        Bits of a level, 4 to 24.

    Raises
    ------
    ConfigError
        If a bound is not a positive finite number.
    """

    def __init__(
        self, bounds: NDArray[np.float32] | Sequence[tuple[int, float]], bits: int
    ) -> None:
        if not 4 <= bits <= 24:
            raise ConfigError(f"encryption: bits = {bits} is outside 4 to 24", "choose 4 to 24")
        if isinstance(bounds, np.ndarray):
            self._bounds = bounds.astype(np.float64)
        else:
            lengths = [length for length, _ in bounds]
            self._bounds = np.repeat([float(bound) for _, bound in bounds], lengths)
        if not (np.isfinite(self._bounds) & (self._bounds > 0)).all():
            raise ConfigError(
                "encryption: a quantisation bound is not a positive finite number",
                "give every parameter a bound above zero",
            )
        self.bits = bits
        self.top_level = (1 << bits) - 2

    @property
    def length(self) -> int:
        """Parameters of a vector, P."""
        return len(self._bounds)

    @property
    def step(self) -> NDArray[np.float64]:
        """Distance between neighbouring levels, float64 (P,)."""
        return self._bounds * (2.0 / self.top_level)

    def quantise(
        self, vector: NDArray[np.floating[Any]], random: RandomStream
    ) -> NDArray[np.uint64]:
        """Round each parameter up or down at random, right on average.

        Values beyond their bound are clipped to it.

        Parameters
        ----------
        vector : float array (P,)
            The update.
        random : RandomStream
            Decides the rounding; cryptographic, so that nobody can undo it.

        Returns
        -------
        uint64 (P,)
            Levels from 0 to ``top_level``.

        Raises
        ------
        TrainingError
            If the vector has another length or a value that is not finite.
        """
        self._check(vector)
        return self._levels(vector, self._bounds, random)

    def quantise_parts(
        self, parts: NDArray[np.floating[Any]], random: RandomStream
    ) -> NDArray[np.uint64]:
        """Do the same with parameters that are given as parts of their bounds, (P,)."""
        self._check(parts)
        return self._levels(parts, np.ones(self.length), random)

    def _levels(
        self, vector: NDArray[np.floating[Any]], bounds: NDArray[np.float64], random: RandomStream
    ) -> NDArray[np.uint64]:
        levels = np.empty(len(vector), dtype=np.uint64)
        half = self.top_level / 2
        for start in range(0, len(vector), _BLOCK):
            exact = vector[start : start + _BLOCK] / bounds[start : start + _BLOCK]
            np.minimum(exact, 1.0, out=exact)
            np.maximum(exact, -1.0, out=exact)
            exact += 1.0
            exact *= half
            lower = np.floor(exact)
            draw = np.frombuffer(random.bytes(4 * len(exact)), dtype="<u4") * 2.0**-32
            levels[start : start + _BLOCK] = lower + (draw < exact - lower)
        return levels

    def dequantise_sum(self, levels: NDArray[np.uint64], sites: int) -> NDArray[np.float64]:
        """Return the sum of the sites' updates from the sum of their levels.

        Parameters
        ----------
        levels : uint64 (P,)
            Sum of levels.
        sites : int
            Updates in the sum.

        Returns
        -------
        float64 (P,)
            Sum, not mean, of the updates.
        """
        offset = sites * (self.top_level // 2)
        return (levels.astype(np.float64) - offset) * self.step

    def _check(self, vector: NDArray[np.floating[Any]]) -> None:
        if vector.shape != self._bounds.shape:
            raise TrainingError(
                f"an update has shape {vector.shape} where ({self.length},) was agreed",
                "use the same adapter on all sides",
            )
        if not np.isfinite(vector).all():
            raise TrainingError(
                "an update holds NaN or infinite values and is not released",
                "lower the learning rate, or check the data",
            )
