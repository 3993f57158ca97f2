"""A self-test from beginning to end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fedllm.audit.selftest.checks import CHECKS, QUICK, WHOLE, Check, Subject
from fedllm.audit.selftest.statistics import ALARM
from fedllm.errors import FedllmError

# No self-test makes more exact tests than this; a test counts them.
MOST_TESTS = 20_000


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found; ``problem`` is none when it passed."""

    name: str
    meaning: str
    problem: str | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the code did what it must."""
        return self.problem is None


def perform(check: Check, subject: Subject) -> Result:
    """Make one check; a check that cannot be finished has failed."""
    started = time.perf_counter()
    try:
        problem = check.look(subject)
    except FedllmError as error:
        problem = f"stopped: {error.message}"
    except Exception as error:
        problem = f"stopped by {type(error).__name__}: {error}"
    return Result(check.name, check.meaning, problem, time.perf_counter() - started)


def selftest(
    heard: Callable[[int, Check], None], told: Callable[[Result], None], quick: bool = False
) -> list[Result]:
    """Make all checks on made-up data in a temporary folder.

    Parameters
    ----------
    heard : callable
        Called with the number of finished checks and the next one.
    told : callable
        Called with each result.
    quick : bool
        All checks, with fewer cases and fewer numbers.

    Returns
    -------
    list of Result
        Right code passes all of them but for a probability of `false_alarm`.
    """
    results = []
    threads = torch.get_num_threads()
    # Two threads on two busy cores wait for each other more than they work.
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="fedllm-selftest-") as folder:
            subject = Subject(Path(folder), QUICK if quick else WHOLE)
            for number, check in enumerate(CHECKS):
                heard(number, check)
                results.append(perform(check, subject))
                told(results[-1])
    finally:
        torch.set_num_threads(threads)
    return results


def false_alarm() -> float:
    """Return a bound on the probability that right code does not pass."""
    return MOST_TESTS * ALARM
