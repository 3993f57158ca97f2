"""The list of checks, and a self-test from beginning to end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from fedllm.audit.selftest import adaptive, discrete, promises, rounds, step, whole_sites
from fedllm.audit.selftest.discrete import DISCRETE
from fedllm.audit.selftest.material import SHARES, Material
from fedllm.audit.selftest.rounds import SHARED, Observed, observe
from fedllm.audit.selftest.statistics import ALARM
from fedllm.errors import FedllmError

# No self-test makes more exact tests than this; a test counts them.
MOST_TESTS = 100


class Subject:
    """What the checks look at; a federation's run is made when the first check asks for it."""

    def __init__(self, folder: Path) -> None:
        self.material = Material(folder)

    @cached_property
    def run(self) -> Observed:
        """A finished run."""
        return observe(self.material)

    @cached_property
    def shared(self) -> Observed:
        """A finished run whose sites share the noise."""
        return observe(self.material, sections=SHARED)

    @cached_property
    def discrete(self) -> Observed:
        """A finished run whose sites share discrete noise."""
        return observe(self.material, sections=DISCRETE)

    @cached_property
    def twin(self) -> Observed:
        """The same run once more, with the same keys."""
        return observe(self.material, self.run.federation)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the self-test.

    Attributes
    ----------
    name : str
        A short name.
    meaning : str
        What holds when it passes, in plain words.
    look : callable
        Returns what is wrong, or none.
    """

    name: str
    meaning: str
    look: Callable[[Subject], str | None]


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


CHECKS = (
    Check(
        "clipping of records",
        "no record moves a training step by more than the clipping norm",
        lambda s: step.clipping_of_records(s.material),
    ),
    Check(
        "clipping of persons",
        "all records of one person together count as one",
        lambda s: step.clipping_of_persons(s.material),
    ),
    Check(
        "noise of a step",
        "the noise is as large as promised, normal, and fresh in every step",
        lambda s: step.noise_of_a_step(s.material),
    ),
    Check(
        "sampling",
        "who is in a batch is drawn by chance for each record, as the accounting assumes",
        lambda s: step.sampling_of_batches(s.material),
    ),
    Check(
        "adapters",
        "training changes every part of the adapter, and leads where it must",
        lambda s: step.adapters_move(s.material),
    ),
    Check(
        "noise of a round",
        "sums that the key authority opens hold the noise that the ledgers were charged for",
        lambda s: rounds.noise_of_sums(s.run),
    ),
    Check(
        "shared noise",
        "the sites' shares of noise make up the whole, in the smallest sum that may be opened",
        lambda s: (
            rounds.noise_of_sums(s.shared, SHARES) or rounds.shares_as_charged(s.shared.federation)
        ),
    ),
    Check(
        "discrete noise",
        "integer noise is drawn exactly, on the grid and in the amount that the ledgers say",
        lambda s: (
            discrete.rounding_and_noise(s.discrete.federation)
            or rounds.noise_of_sums(s.discrete, SHARES)
            or rounds.sampling_as_charged(s.discrete)
            or discrete.noise_as_charged(s.discrete.federation)
        ),
    ),
    Check(
        "moving norm",
        "a clipping norm that follows the gradients is noised and charged with them",
        lambda s: (
            adaptive.norm_follows(s.material)
            or adaptive.noise_of_sum_and_count(s.material)
            or adaptive.noise_as_charged(s.material)
        ),
    ),
    Check(
        "whole sites",
        "with a site as the unit its whole update is clipped, noised and charged as one",
        lambda s: whole_sites.sites_as_units(s.material),
    ),
    Check(
        "chance",
        "nobody can predict noise or batches: the same run again is different",
        lambda s: rounds.noise_is_secret(s.run, s.twin),
    ),
    Check(
        "sampling as charged",
        "records are used as often as the ledgers say",
        lambda s: rounds.sampling_as_charged(s.run),
    ),
    Check(
        "accounting",
        "three foreign accountants find the epsilon that was promised",
        lambda s: promises.accounting_is_right(s.material),
    ),
    Check(
        "ledger",
        "every step of every round is on record, and no entry can be changed or left out",
        lambda s: promises.ledger_is_complete(s.run),
    ),
    Check(
        "budget",
        "a failed round stays charged, and what exceeds the ceiling is refused",
        lambda s: promises.ledger_keeps_the_budget(s.material),
    ),
    Check(
        "encryption",
        "what leaves a site cannot be told from random numbers",
        lambda s: promises.updates_are_encrypted(s.run),
    ),
    Check(
        "masks",
        "even with the decryption key a single update cannot be told from random numbers",
        lambda s: promises.updates_are_masked(s.material),
    ),
    Check(
        "keys",
        "keys are fresh, open one sum once, and nothing unsigned is accepted",
        lambda s: promises.keys_are_handled(s.material),
    ),
)


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


def selftest(heard: Callable[[int, Check], None], told: Callable[[Result], None]) -> list[Result]:
    """Make all checks on made-up data in a temporary folder.

    Parameters
    ----------
    heard : callable
        Called with the number of finished checks and the next one.
    told : callable
        Called with each result.

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
            subject = Subject(Path(folder))
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
