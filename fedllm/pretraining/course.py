"""How far a run is: what a checkpoint keeps of that beside tensors, and the time it took."""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass


@dataclass
class Course:
    """What the loop carries from step to step, and into a checkpoint.

    Attributes
    ----------
    step : int
        Steps taken.
    window_loss, window_steps
        Sum of the losses since the last report, and of how many steps.
    smoothed, best : float
        Smoothed loss in nats, and the lowest that it was.
    seconds, cpu_seconds : float
        Over all starts of the run.
    """

    step: int = 0
    window_loss: float = 0.0
    window_steps: int = 0
    smoothed: float = math.nan
    best: float = math.inf
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Clock:
    """Wall time and CPU time of the run over all its starts, and the pace of the last steps."""

    def __init__(self, course: Course) -> None:
        self._last = time.monotonic()
        self._zero = course.seconds - self._last, course.cpu_seconds - cpu_seconds()
        self._step = course.step
        self._pace: float | None = None

    def update(self, course: Course) -> None:
        """Write the time until now into ``course``."""
        course.seconds = self._zero[0] + time.monotonic()
        course.cpu_seconds = self._zero[1] + cpu_seconds()

    def seconds_per_step(self, step: int) -> float:
        """Return the smoothed pace; ``step`` is how far the run is now."""
        now = time.monotonic()
        pace = (now - self._last) / max(1, step - self._step)
        self._pace = pace if self._pace is None else 0.7 * self._pace + 0.3 * pace
        self._last, self._step = now, step
        return max(self._pace, 1e-9)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the compilers that it ran."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
