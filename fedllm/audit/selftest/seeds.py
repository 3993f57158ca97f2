"""Checks of where randomness comes from: the operating system alone, and in full.

Statistics cannot see a key of 64 bits, or noise that follows from a public value. So the
operating system's answers are noted, or replaced by known ones: noise must be another in full
when they are, whatever is public stays, and the same when they stay, whatever else changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedllm.audit.selftest.building import Setting, build, new_identities
from fedllm.audit.selftest.entropy import (
    SMALLEST_KEY_BYTES,
    changed,
    known_answers,
    watched,
    weak_key,
)
from fedllm.audit.selftest.federation import Federation
from fedllm.audit.selftest.material import RECORDS, SITES, Kind, Material, Vector
from fedllm.audit.selftest.probe import WAYS, Probe, Way, probes
from fedllm.audit.selftest.statistics import first, unrelated, variance
from fedllm.config import RunConfig, Task
from fedllm.federation.protocol.round_statement import Purpose
from fedllm.mechanisms import mechanism_of

# The same entropy gives the same noise; what is left is rounding.
_SAME = 1e-6
_VALUE_BYTES = 8


def seeds_of_noise(material: Material, places: Iterable[int], every_task: bool) -> str | None:
    """Every byte of a key from the operating system counts for all noise of a contribution.

    ``places`` are the bytes of a key that are tried.
    """
    places = list(places)
    for one in probes(material, every_task):
        if problem := _keys(one) or _worlds(one, places):
            return f"{one.name}: {problem}"
    return None


def _keys(one: Probe) -> str | None:
    with watched() as seen:
        one.noise()
        one.noise()
    if problem := weak_key(seen):
        return problem
    least = 2 * _VALUE_BYTES * one.work.length
    if sum(stream.bytes for stream in seen.used) < least:
        return "noise is not drawn from streams with keys of the operating system"
    return None


def _worlds(one: Probe, places: list[int]) -> str | None:
    answer = known_answers("one")
    with watched(answer) as seen:
        noise = one.noise()
    with watched(answer):
        again = one.noise()
    if not float(np.abs(again - noise).max()) < _SAME:
        return "something beside the operating system decides on the noise"
    decisive = []
    for call, given in enumerate(seen.answers):
        with watched(changed(answer, call)):
            other = one.noise()
        if float(np.abs(other - noise).max()) < _SAME:
            continue
        decisive.append(call)
        if len(given) < SMALLEST_KEY_BYTES:
            return f"a key has {8 * len(given)} bits"
    if not decisive:
        return "noise is the same whatever the operating system gives: it can be predicted"
    # One call for everything, or one for each step: together they change all of it.
    for place in places:
        moved = answer
        for call in decisive:
            moved = changed(moved, call, place)
        with watched(moved):
            other = one.noise()
        if problem := _another(one, noise, other, f"byte {place} of a key"):
            return problem
    return None


def _another(one: Probe, noise: Vector, other: Vector, what: str) -> str | None:
    large = [segment for segment in one.segments if segment.size >= 64]
    for segment in large:
        pair = [noise[segment.slice], other[segment.slice]]
        if problem := unrelated(pair, segment.size, f"{segment.name}, other {what}"):
            return problem
    still = int((np.abs(noise - other) < _SAME).sum())
    # Of discrete noise one value in a few hundred is equal by chance.
    if not one.way.discrete and still > max(3, len(noise) // 100):
        return f"{still} of {len(noise)} values of noise do not depend on {what}"
    return None


def seeds_of_sites(material: Material, all_ways: bool) -> str | None:
    """A site's update and its evaluation: other entropy, other noise; nothing public counts."""
    tried: list[tuple[Way, Purpose]] = [(way, "update") for way in WAYS if not way.moving]
    tried += [(WAYS[0], "evaluation"), (WAYS[1], "evaluation")]
    for way, purpose in tried if all_ways else [tried[0], tried[1], tried[-1]]:
        if problem := _site(material, way, purpose):
            return f"{way.name}, {purpose}: {problem}"
    return None


@dataclass(frozen=True)
class _World:
    """What is public in a round, and what is secret."""

    entropy: str
    run: str = "run-1"
    attempt: int = 1
    seed: int = 0


def _site(material: Material, way: Way, purpose: Purpose) -> str | None:
    identities = new_identities()

    def sent(world: _World, key: Any = None) -> tuple[Vector, Federation, str | None]:
        # Who is held out depends on the site's keys, and with it what a sum is divided by.
        every = 1 if purpose == "evaluation" else 0
        config = site_config(material, way, world.seed, evaluation={"every": every})
        federation = build(material, config, Setting(identities=identities, run=world.run))
        if key is not None:
            federation.keys[purpose] = key
        noise = mechanism_of(config).announced_noise(1, ()) if purpose == "update" else None
        # The order and its key are the coordinator's, made with other entropy.
        order, _ = federation.order(1, None, world.attempt, noise, purpose)
        # As in every run; there a site makes up records that are the same everywhere.
        if (refusal := federation.joined(SITES[0]).refusal) is not None:
            raise refusal.to_error(SITES[0])
        with watched(known_answers(world.entropy)) as seen:
            vector = federation.sent(SITES[0], 1, world.attempt, noise, purpose)
        if config.encryption.masked:
            # Masks have keys of the site's, which noise must not depend on.
            with watched() as masks:
                federation.mask(SITES[0], order)
            of_masks = {stream.key for stream in masks.streams}
            seen.streams = [stream for stream in seen.streams if stream.key not in of_masks]
        return vector, federation, weak_key(seen)

    base, federation, weak = sent(_World("one"))
    if weak:
        return weak
    key = federation.keys[purpose]
    other, _, _ = sent(_World("two"), key)
    public, _, _ = sent(_World("one", run="run-2", attempt=7, seed=5))
    step = federation.quantiser(purpose).step
    if not float((np.abs(public - base) / step).max()) < 3:
        return "what is public decides on the noise"
    if purpose == "evaluation":
        moved = np.abs(other - base) > 3 * step
        return None if moved.all() else "a sum is the same whatever the operating system gives"
    problems = []
    right = 2 * _deviations(federation, way) ** 2
    start = 0
    for size, _ in federation.terms.bounds:
        block = slice(start, start + size)
        start += size
        scaled = (other - base)[block] / np.sqrt(right[block])
        rounding = float((2 * step[block] ** 2 / 4 / right[block]).max())
        problems.append(
            variance(scaled, 1.0, "the noise of two rounds with other entropy", extra=rounding)
        )
    return first(*problems)


def _deviations(federation: Federation, way: Way) -> Vector:
    """Return the standard deviation of a site's noise, by what its ledger was charged."""
    charge = federation.charges(SITES[0])[-1]
    event: Any = charge.events[0]
    return update_deviation(federation, way, event)


def update_deviation(federation: Federation, way: Way, event: Any) -> Vector:
    """Return the standard deviation of one site's noise in its update, (P,), as charged."""
    config = federation.config
    norm, length = config.privacy.clipping_norm, federation.terms.update_length
    shares = way.shares
    if way.discrete:
        return np.full(length, event.share_deviation) * federation.quantiser().step
    if way.divided == "not":
        return np.full(length, event.noise_multiplier * 2 * norm / np.sqrt(shares))
    divisor = RECORDS if way.divided == "units" else config.training.batch_size
    one = event.noise_multiplier * norm * np.sqrt(event.steps / shares) / divisor
    return np.full(length, one * config.training.learning_rate)


def site_config(
    material: Material,
    way: Way,
    seed: int = 0,
    kind: Kind = "bert",
    task: Task | None = None,
    **more: dict[str, Any],
) -> RunConfig:
    """Return the configuration of a run whose updates the self-test can open one by one."""
    sections: dict[str, dict[str, Any]] = {name: dict(s) for name, s in way.sections.items()}
    wanted: dict[str, dict[str, Any]] = {
        # Everyone in every batch, so that nothing but noise is left to chance.
        "training": {"sampling_rate": 1.0},
        # Shared noise demands masks.
        "encryption": {"masks": way.shared, "bits": 20 if way.discrete else 24},
        "privacy": {"epsilon": 8.0},
    }
    for name, section in [*wanted.items(), *more.items()]:
        sections[name] = {**sections.get(name, {}), **section}
    return material.config(kind, task, **sections).model_copy(update={"seed": seed})
