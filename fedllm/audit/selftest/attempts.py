"""Checks of rounds that are tried again, of noise that is announced, and of ceilings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fedllm.audit.selftest.accountant import epsilon_of, mu_squared_of, noise_for, spent
from fedllm.audit.selftest.building import Setting, build, new_identities
from fedllm.audit.selftest.entropy import replaced, watched
from fedllm.audit.selftest.federation import Federation
from fedllm.audit.selftest.material import SITES, Kind, Material
from fedllm.audit.selftest.probe import WAYS, Way
from fedllm.audit.selftest.seeds import site_config, update_deviation
from fedllm.audit.selftest.statistics import variance
from fedllm.config import BudgetSection, RunConfig
from fedllm.errors import TrainingError
from fedllm.federation.site.work import SiteWork

_EPSILON, _DELTA = 8.0, 1e-5
_NAME = SITES[0]
LOCAL, SHARED = WAYS[0], WAYS[1]
_LOST = {True: "lost", False: "restored from an older copy"}


@contextmanager
def failing(error: Exception) -> Iterator[None]:
    """Let everything that a site computes of its records fail, as a full memory would."""

    def fail(*_: object) -> None:
        raise error

    with replaced(SiteWork, "train", fail), replaced(SiteWork, "evaluate", fail):
        yield


def attempts_are_charged(material: Material) -> str | None:
    """Every attempt is paid, failed or not, and the run keeps its epsilon all the same."""
    config = site_config(
        material, LOCAL, rounds={"count": 3}, evaluation={"every": 0}, training={"local_steps": 1}
    )
    federation = build(material, config)
    if problem := _two_attempts(federation):
        return problem
    for attempt, error in ((3, TrainingError("made up")), (4, RuntimeError("made up"))):
        with failing(error):
            if not federation.refused(_NAME, 1, attempt):
                return "a round whose training failed gave an update"
    federation.refused(_NAME, 1, 4)
    federation.sent(_NAME, 1, 5)
    federation.sent(_NAME, 2, 6)
    federation.sent(_NAME, 3, 7)
    charges = federation.charges(_NAME)
    # Whether the repeated fourth attempt is refused for nothing or charged once more is free.
    rounds = [charge.round for charge in charges]
    if rounds.count(1) < 5 or rounds.count(2) != 1 or rounds.count(3) != 1:
        return f"of 7 attempts the ledger holds {len(charges)}"
    found = epsilon_of(spent(event for c in charges for event in c.events), _DELTA)
    if found > 1.001 * _EPSILON:
        return f"with its repeated rounds the run cost epsilon {found:.3f} of {_EPSILON:g}"
    noises = [c.events[0].noise_multiplier for c in charges]  # type: ignore[union-attr]
    if noises[-1] <= noises[0] * 1.01:
        return "repeated rounds made the noise of later ones no larger"
    return None


def _two_attempts(federation: Federation) -> str | None:
    """Two attempts on the same records draw anew, and differ by the noise of both."""
    with watched() as seen:
        updates = [federation.sent(_NAME, 1, attempt) for attempt in (1, 2)]
    if len(seen.sampled) != 2:
        return "a repeated round did not draw a batch of its own"
    charges = federation.charges(_NAME)
    if len(charges) != 2:
        return f"of 2 attempts the ledger holds {len(charges)}"
    right = sum(update_deviation(federation, LOCAL, c.events[0]) ** 2 for c in charges)
    step = federation.quantiser().step
    return variance(
        (updates[0] - updates[1]) / np.sqrt(right),
        1.0,
        "the noise of two attempts",
        extra=float((step**2 / 2 / right).max()),
    )


def evaluations_are_charged(material: Material) -> str | None:
    """A failed evaluation is paid, and counts among those that a run may have."""
    config = site_config(material, LOCAL, rounds={"count": 2}, evaluation={"every": 1})
    federation = build(material, config)
    with failing(RuntimeError("made up")):
        if not federation.refused(_NAME, 1, 1, purpose="evaluation"):
            return "an evaluation that failed gave a sum"
    federation.sent(_NAME, 1, 2, purpose="evaluation")
    purposes = [charge.purpose for charge in federation.charges(_NAME)]
    if purposes != ["evaluation"] * 2:
        return f"of 2 evaluations, one of them failed, the ledger holds {len(purposes)}"
    if not federation.refused(_NAME, 2, 3, purpose="evaluation"):
        return "a failed evaluation does not count among those of the run"
    return None


def evaluations_count_for_later_runs(material: Material) -> str | None:
    """What evaluations have cost is spent for every later run."""
    with_evaluation = site_config(
        material, LOCAL, rounds={"count": 1}, evaluation={"every": 1, "epsilon": 5.0}
    )
    after = one_round(material)
    right = epsilon_of(mu_squared_of(5.0, _DELTA) + mu_squared_of(2.0, _DELTA), _DELTA)
    for ceiling, fits in (((5.0 + right) / 2, False), (1.03 * right, True)):
        setting = Setting(
            identities=new_identities(),
            folder=material.new_folder(),
            budget=BudgetSection(epsilon=ceiling),
        )
        build(material, with_evaluation, setting).sent(_NAME, 1, 1, purpose="evaluation")
        if pay(build(material, after, replace(setting, run="run-2"))) != fits:
            return "a later run leaves out what an evaluation has cost"
    return None


def what_is_lost_is_missed(material: Material) -> str | None:
    """A site whose ledger is gone, or an older copy, does not go on as if nothing was."""
    config = site_config(material, LOCAL, evaluation={"every": 0})
    for gone in (True, False):
        setting = Setting(identities=new_identities(), folder=material.new_folder())
        federation = build(material, config, setting)
        ledger = federation.ledger_file(_NAME)
        federation.sent(_NAME, 1, 1)
        older = ledger.read_bytes()
        federation.sent(_NAME, 1, 2)
        ledger.unlink()
        if not gone:
            ledger.write_bytes(older)
        restarted = build(material, config, setting)
        if not restarted.refused(_NAME, 1, 3):
            return f"a site went on with its run after its ledger was {_LOST[gone]}"
    return None


def an_attempt_serves_once(material: Material) -> str | None:
    """The same order, an older one, or the same after all but the ledger was lost, is refused."""
    config = site_config(material, LOCAL, evaluation={"every": 0})
    setting = Setting(identities=new_identities(), folder=material.new_folder())
    federation = build(material, config, setting)
    federation.sent(_NAME, 1, 2)
    federation.files(_NAME).memory.unlink()
    restarted = build(material, config, setting)
    restarted.keys = federation.keys
    for again in (federation, restarted):
        for attempt in (1, 2):
            if not again.refused(_NAME, 1, attempt):
                return f"attempt {attempt} was trained after attempt 2"
    return None


def announced_noise_is_checked(material: Material) -> str | None:
    """Noise that the coordinator announces is taken only if it keeps the run's epsilon here."""
    for way in WAYS:
        if way.shared and (problem := _announced(material, way)):
            return f"{way.name}: {problem}"
    return None


def _announced(material: Material, way: Way) -> str | None:
    config = site_config(material, way, rounds={"count": 2}, evaluation={"every": 0})
    federation = build(material, config)
    needed = noise_for(mu_squared_of(_EPSILON, _DELTA), 2)
    parts = (None, 0.0, 0.5, 0.9)
    for attempt, part in enumerate(parts, 1):
        noise = None if part is None else part * needed
        if not _refuses(federation, 1, attempt, noise):
            return f"{part or 'none'} of the noise that is needed was enough"
    if federation.charges(_NAME):
        return "a round that was refused is in the ledger"
    if _refuses(federation, 1, len(parts) + 1, 1.1 * needed):
        return "more noise than is needed was refused"
    (event,) = federation.charges(_NAME)[0].events
    if abs(event.noise_multiplier / (1.1 * needed) - 1) > 1e-6:  # type: ignore[union-attr]
        return "another noise than was announced is charged"
    # Round 1 again: what is left of the run's epsilon has to do for two rounds.
    left = mu_squared_of(_EPSILON, _DELTA) - 1 / (1.1 * needed) ** 2
    if not _refuses(federation, 1, len(parts) + 2, 0.95 * noise_for(left, 2)):
        return "noise was enough that leaves out what an earlier attempt has cost"
    return None


def _refuses(federation: Federation, number: int, attempt: int, noise: float | None) -> bool:
    return federation.refused(_NAME, number, attempt, noise)


def one_round(
    material: Material,
    epsilon: float = 2.0,
    way: Way = LOCAL,
    kind: Kind = "bert",
    **privacy: float,
) -> RunConfig:
    """Return a run of one step in one round, which costs a known epsilon at once."""
    return site_config(
        material,
        way,
        kind=kind,
        rounds={"count": 1, "min_sites": way.sections.get("rounds", {}).get("min_sites", 2)},
        evaluation={"every": 0},
        training={"local_steps": 1},
        privacy={"epsilon": epsilon, **privacy},
    )


def pay(federation: Federation, noise: float | None = None) -> bool:
    """Let the first site do the run's one round; tell whether it did."""
    return not federation.refused(_NAME, 1, 1, noise)


def joins(federation: Federation) -> bool:
    """Ask the first site whether it takes part in the run."""
    return federation.joined(_NAME).refusal is None


def ceilings_hold(material: Material) -> str | None:
    """Finished or not, all runs together stay below the ceiling; joining looks ahead."""
    config = one_round(material)
    each = mu_squared_of(2.0, _DELTA)
    for finished in (True, False):
        between = (epsilon_of(2 * each, _DELTA) + epsilon_of(3 * each, _DELTA)) / 2
        same = Setting(
            identities=new_identities(),
            folder=material.new_folder(),
            budget=BudgetSection(epsilon=between),
        )
        for number in range(1, 4):
            federation = build(material, config, _another_run(same, number))
            asked = joins(federation)
            if finished or number == 3:
                paid = pay(federation)
            else:
                with failing(TrainingError("made up")):
                    pay(federation)
                paid = len(federation.charges(_NAME)) == number
            if (paid or asked) and number == 3:
                what = "finished" if finished else "failed"
                return f"a run above the ceiling was taken after {what} ones"
            if not (paid and asked) and number < 3:
                return "a run below the ceiling was refused"
    return _colluders(material) or _whole_run(material) or _deltas(material) or _without(material)


def _another_run(setting: Setting, number: int) -> Setting:
    return replace(setting, run=f"run-{number}")


def _whole_run(material: Material) -> str | None:
    """A run whose rounds fit one by one and not together is refused when a site is asked.

    So is one that would fit without its evaluations.
    """
    for asked in ({"every": 0}, {"every": 2, "epsilon": 5.0}):
        config = site_config(material, LOCAL, rounds={"count": 4}, evaluation=asked)
        for ceiling, fits in ((0.97 * _EPSILON, False), (1.03 * _EPSILON, True)):
            federation = build(material, config, Setting(budget=BudgetSection(epsilon=ceiling)))
            if joins(federation) != fits:
                what = "refused" if fits else "joined"
                return f"a run of epsilon {_EPSILON:g} was {what} under a ceiling of {ceiling:g}"
    return None


def _deltas(material: Material) -> str | None:
    """A run's promise at a large delta costs more at the site's."""
    config = one_round(material, delta=1e-3)
    right = epsilon_of(mu_squared_of(2.0, 1e-3), _DELTA)
    for ceiling, fits in ((0.97 * right, False), (1.04 * right, True)):
        federation = build(material, config, Setting(budget=BudgetSection(epsilon=ceiling)))
        if (joins(federation), pay(federation)) != (fits, fits):
            return f"epsilon 2 at delta 0.001 is {right:.2f} at the site's, not under {ceiling:.2f}"
    return None


def _without(material: Material) -> str | None:
    """A run without privacy needs the site's leave, and nothing private follows it."""
    config = one_round(material)
    open_run = config.model_copy(
        update={"privacy": config.privacy.model_copy(update={"epsilon": None})}
    )
    setting = Setting(identities=new_identities(), folder=material.new_folder())
    setting = replace(setting, budget=BudgetSection(epsilon=1e5))
    if joins(build(material, open_run, replace(setting, non_private=False))):
        return "a run without privacy was joined without the site's leave"
    if not pay(build(material, open_run, replace(setting, run="run-1"))):
        return "a run without privacy was refused at a site that allows it"
    after = build(material, config, replace(setting, run="run-2"))
    if joins(after) or pay(after):
        return "a private run was taken after one without privacy"
    return None


def _colluders(material: Material) -> str | None:
    """The ceiling against everyone else colluding counts one site's share of the noise."""
    config = one_round(material, way=SHARED)
    noise = 1.01 * noise_for(mu_squared_of(2.0, _DELTA), 1)
    shares = SHARED.shares
    alone = epsilon_of(shares / noise**2, _DELTA)
    for ceiling, fits in ((0.97 * alone, False), (1.03 * alone, True)):
        budget = BudgetSection(epsilon=2.1, colluders_epsilon=ceiling)
        federation = build(material, config, Setting(budget=budget))
        if pay(federation, noise) != fits:
            return f"epsilon {alone:.2f} against colluders under a ceiling of {ceiling:.2f}"
    return None
