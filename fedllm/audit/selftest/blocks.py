"""Checks of the noise in what a site contributes: every block of values by itself."""

from __future__ import annotations

import numpy as np

from fedllm.audit.selftest.entropy import scripted_normals
from fedllm.audit.selftest.material import SITES, Material, Vector
from fedllm.audit.selftest.probe import Probe, probes
from fedllm.audit.selftest.statistics import (
    centred,
    fine,
    first,
    normal_shape,
    tails,
    unrelated,
    variance,
)
from fedllm.randomness import RandomStream

# Far above the rounding of float32 (1e-7), far below that of half precision (1e-3 at 4).
_EXACT = 1e-4
# Beyond these lies one value in thirty million.
_LARGEST = 5.4


def noise_of_every_block(material: Material, calls: int, every_task: bool) -> str | None:
    """Every tensor of every contribution holds fresh, normal noise of the right size."""
    for one in probes(material, every_task):
        rows = _drawn(one, calls)
        for segment in one.segments:
            values = rows[:, segment.slice].ravel()
            what = f"{one.name}, {segment.name}"
            if problem := _one_block(values, what, one.way.discrete):
                return problem
        if problem := _together(rows, one):
            return problem
    return None


def _drawn(one: Probe, calls: int) -> Vector:
    """Draw (calls, P): different sites and rounds, and the same ones again."""
    turns = [(SITES[call % len(SITES)], 1 + call // 6) for call in range(calls)]
    rows = np.stack([one.noise(site=site, number=number) for site, number in turns])
    if one.way.discrete:
        # Spread over its grid step: the sum of a discrete Gaussian and that is smooth.
        place = RandomStream.secure().uniform(rows.size).reshape(rows.shape) - 0.5
        rows = (rows * one.share + place) / np.sqrt(one.share**2 + 1 / 12)
    return rows


def _one_block(values: Vector, what: str, discrete: bool) -> str | None:
    return first(
        variance(values, 1.0, what),
        centred(values, 1.0, what),
        normal_shape(values, what),
        tails(values, what),
        None if discrete else fine(values, what),
    )


def _together(rows: Vector, one: Probe) -> str | None:
    flat = rows.ravel()
    large = [rows[:, segment.slice] for segment in one.segments if segment.size >= 64]
    same = [block for block in large if block.shape == large[0].shape]
    return first(
        tails(flat, one.name),
        normal_shape(flat, one.name),
        None if one.way.discrete else fine(flat, one.name),
        unrelated(list(rows[:14]), rows.shape[1], f"{one.name}: sites and rounds"),
        unrelated([block.ravel() for block in same], same[0].size, f"{one.name}: blocks"),
    )


def noise_arrives(material: Material, every_task: bool) -> str | None:
    """Whatever is drawn arrives as it is, the largest noise too: nothing cuts or rounds it."""
    script = scripted(1 << 15)
    for one in probes(material, every_task):
        if one.way.discrete:
            continue
        with scripted_normals(script):
            found = one.noise()
        # Each step draws the same numbers, which adds up to more than independent ones.
        wanted = one.way.sign * script[: len(found)] * np.sqrt(one.steps)
        worst = float(np.abs(found - wanted).max())
        if not worst < _EXACT * _LARGEST:
            return f"{one.name}: noise is off by {worst:.2g} deviations where it arrives"
    return None


def scripted(count: int) -> Vector:
    """Return numbers to stand for standard normal ones, up to the largest there are."""
    numbers = np.random.default_rng(3).normal(size=count)
    numbers[::37] = np.linspace(-_LARGEST, _LARGEST, len(numbers[::37]))
    return np.clip(numbers, -_LARGEST, _LARGEST)
