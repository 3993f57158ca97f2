"""The list of checks, and what they look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedllm.audit.selftest import (
    adaptive,
    arrival,
    attempts,
    blocks,
    charges,
    discrete,
    evaluation,
    inheritance,
    leaks,
    promises,
    rankings,
    rounds,
    seeds,
    step,
    streams,
    whole_sites,
)
from fedllm.audit.selftest.discrete import DISCRETE
from fedllm.audit.selftest.material import SHARES, Material
from fedllm.audit.selftest.rounds import SHARED, Observed, observe


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes
    ----------
    every_task : bool
        Every task with every mechanism, and not each with one.
    calls : int
        Contributions of noise that are looked at, of each mechanism and task.
    key_bytes : tuple of int
        Which bytes of a key are changed one by one.
    streams : int
        Streams that are begun to see two alike.
    normals, integers : int
        Numbers of continuous and of discrete noise.
    batches : int
        Batches that are read out.
    """

    every_task: bool
    calls: int
    key_bytes: tuple[int, ...]
    streams: int
    normals: int
    integers: int
    batches: int


WHOLE = Effort(True, 60, tuple(range(32)), 1 << 19, 60_000_000, 60_000_000, 120)
QUICK = Effort(False, 20, (0, 4, 8, 16, 31), 1 << 18, 1_000_000, 1_000_000, 40)


class Subject:
    """What the checks look at; a federation's run is made when the first check asks for it."""

    def __init__(self, folder: Path, effort: Effort = WHOLE) -> None:
        self.material = Material(folder)
        self.effort = effort

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
        """Two rounds of the same run once more, with the same keys."""
        return observe(self.material, self.run.federation, rounds=2)


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


CHECKS = (
    Check(
        "generator",
        "random streams are AES-256 under keys of full length, and no two begin alike",
        lambda s: streams.generator(s.effort.streams),
    ),
    Check(
        "uniform numbers",
        "uniform numbers, whole numbers and samples have their exact distributions",
        lambda s: streams.uniform_numbers() or streams.rounding(),
    ),
    Check(
        "normal numbers",
        "Gaussian noise is normal far into its tails, and fine-grained",
        lambda s: streams.normal_numbers(s.effort.normals),
    ),
    Check(
        "discrete numbers",
        "discrete noise has its exact probabilities far into its tails",
        lambda s: streams.discrete_numbers(s.effort.integers),
    ),
    Check(
        "clipping of records",
        "no record moves a training step by more than the clipping norm",
        lambda s: step.clipping_of_records(s.material, s.effort.every_task),
    ),
    Check(
        "clipping of persons",
        "all records of one person together count as one",
        lambda s: step.clipping_of_persons(s.material, s.effort.every_task),
    ),
    Check(
        "rankings",
        "all that is said of the answers to one prompt counts as one, against the run's beginning",
        lambda s: rankings.rankings_count_once(s.material),
    ),
    Check(
        "noise of a step",
        "the noise is as large as promised, normal, and fresh in every step",
        lambda s: step.noise_of_a_step(s.material),
    ),
    Check(
        "noise of every block",
        "every tensor's noise is right by itself, in each mechanism and task, in empty batches too",
        lambda s: blocks.noise_of_every_block(s.material, s.effort.calls, s.effort.every_task),
    ),
    Check(
        "noise arrives",
        "nothing cuts, rounds or leaves out noise between where it is drawn and the update",
        lambda s: blocks.noise_arrives(s.material, s.effort.every_task),
    ),
    Check(
        "seeds of noise",
        "every byte of a key from the operating system counts for all of the noise",
        lambda s: seeds.seeds_of_noise(s.material, s.effort.key_bytes, s.effort.every_task),
    ),
    Check(
        "seeds of sites",
        "nothing public decides on a site's noise, in training or evaluation",
        lambda s: seeds.seeds_of_sites(s.material, s.effort.every_task),
    ),
    Check(
        "sampling",
        "who is in a batch is drawn by chance for each record, as the accounting assumes",
        lambda s: step.sampling_of_batches(s.material, s.effort.batches),
    ),
    Check(
        "batches of steps",
        "every local step draws a batch of its own",
        lambda s: step.batches_of_steps(s.material, s.effort.batches, s.effort.every_task),
    ),
    Check(
        "adapters",
        "training changes every part of the adapter, and leads where it must",
        lambda s: step.adapters_move(s.material),
    ),
    Check(
        "noise as charged",
        "an opened update is its clipped sum and the noise that the ledger was charged for",
        lambda s: arrival.noise_leaves_as_charged(s.material, s.effort.every_task),
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
        "evaluation",
        "one held-out unit moves a sum by no more than its noise hides, as charged",
        lambda s: evaluation.evaluation_is_private(s.material, s.effort.every_task),
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
        "rates",
        "units are drawn and charged at the batch over their announced number, to the last digit",
        lambda s: charges.rates_are_charged(s.material, s.effort.every_task),
    ),
    Check(
        "charges",
        "rounds and evaluations cost what public numbers say, for who sees sums and for colluders",
        lambda s: charges.runs_are_charged(s.material),
    ),
    Check(
        "attempts",
        "every attempt is paid, failed or not, gives one update, and the run keeps its epsilon",
        lambda s: (
            attempts.attempts_are_charged(s.material)
            or attempts.evaluations_are_charged(s.material)
            or attempts.an_attempt_serves_once(s.material)
            or attempts.what_is_lost_is_missed(s.material)
        ),
    ),
    Check(
        "announced noise",
        "noise that the coordinator announces is taken only if it is enough",
        lambda s: attempts.announced_noise_is_checked(s.material),
    ),
    Check(
        "budget",
        "all runs together stay below the ceilings, whatever failed in between",
        lambda s: (
            attempts.ceilings_hold(s.material)
            or attempts.evaluations_count_for_later_runs(s.material)
            or promises.run_above_the_ceiling(s.material)
        ),
    ),
    Check(
        "earlier runs",
        "all that was ever charged counts for every later run, whatever file, task or records",
        lambda s: inheritance.everything_is_charged(s.material, s.effort.every_task),
    ),
    Check(
        "carry-over",
        "what was spent under lost keys counts on, with its delta",
        lambda s: (
            inheritance.spending_is_carried(s.material, s.effort.every_task)
            or inheritance.statements_are_charged(s.material, s.effort.every_task)
        ),
    ),
    Check(
        "accounting",
        "three foreign accountants find the epsilon that was promised",
        lambda s: promises.accounting_is_right(s.material, s.effort.every_task),
    ),
    Check(
        "ledger",
        "every step of every round is on record, and no entry can be changed or left out",
        lambda s: promises.ledger_is_complete(s.run),
    ),
    Check(
        "words",
        "no word that leaves a site, in answers or refusals, depends on its records",
        lambda s: (
            leaks.words_say_nothing(s.material, s.effort.every_task)
            or leaks.refusals_say_nothing(s.material)
        ),
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
