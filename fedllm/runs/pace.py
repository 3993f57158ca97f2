"""When something is worth a line again: not more often than every so many seconds."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Says whether nothing was told for a while.

    Parameters
    ----------
    interval_s : float
        How long, in seconds.
    clock : callable, optional
        Tells the seconds; the system's steady clock when left out.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._told_at = clock()

    def told(self) -> None:
        """Note that something is told now."""
        self._told_at = self._clock()

    @property
    def due(self) -> bool:
        """Whether nothing was told for the interval."""
        return self._clock() - self._told_at >= self._interval_s
