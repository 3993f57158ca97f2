"""Checks of a whole site as the unit: its update is clipped, noised and charged as one."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from fedllm.audit.selftest.building import build, records_of
from fedllm.audit.selftest.federation import RUN, Federation
from fedllm.audit.selftest.material import (
    SITES,
    STEPS,
    Material,
    Vector,
    clipped,
    dataset_of,
    plain_steps,
)
from fedllm.audit.selftest.rounds import shares_as_charged
from fedllm.audit.selftest.statistics import first, unrelated, variance
from fedllm.config import RunConfig
from fedllm.encryption.quantise import Quantiser
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.accounting.events import PoissonGaussian

Noise = Literal["local", "distributed"]
_ROUNDS = 2
_LEARNING_RATE = 0.01


def sites_as_units(material: Material) -> str | None:
    """Sums hold each site's clipped update and noise for twice the clipping norm."""
    updates = _updates(material, _config(material, 1.0, "local"))
    # Every site's update is at least twice as long as it may be.
    norm = 0.5 * float(np.linalg.norm(updates, axis=1).min())
    problems: list[str | None] = []
    kinds: tuple[Noise, ...] = ("local", "distributed")
    for noise in kinds:
        config = _config(material, norm, noise)
        federation = build(material, config)
        right = clipped(updates, norm).sum(axis=0)
        left = [
            federation.round(number).mean * len(SITES) - right for number in range(1, _ROUNDS + 1)
        ]
        problems.append(_judge(federation, noise, left))
        if noise == "distributed":
            problems.append(shares_as_charged(federation))
    return first(*problems)


def _judge(federation: Federation, noise: Noise, left: list[Vector]) -> str | None:
    config, what = federation.config, f"{noise} noise of whole sites"
    charged = []
    for name in SITES:
        events = federation.ledger(name).events_of_run(RUN)
        if len(events) != _ROUNDS or not all(isinstance(e, PoissonGaussian) for e in events):
            return f"the ledger of {name} does not hold one release for each round"
        charged += [event for event in events if isinstance(event, PoissonGaussian)]
    if any((event.sampling_rate, event.steps) != (1.0, 1) for event in charged):
        return "a site is in every round, and a ledger says that it was sampled"
    shares = config.rounds.min_sites if noise == "distributed" else 1
    # An update may be exchanged for any other of the same norm: twice the norm apart.
    reach = 2 * config.privacy.clipping_norm
    first_round = charged[::_ROUNDS]
    right = sum((event.noise_multiplier * reach) ** 2 for event in first_round) / shares
    step = float(np.max(Quantiser(federation.terms.bounds, config.encryption.bits).step))
    return first(
        variance(np.concatenate(left), right, what, extra=len(SITES) * step**2 / 4),
        unrelated(left, len(left[0]), what),
    )


def _config(material: Material, norm: float, noise: Noise) -> RunConfig:
    return material.config(
        "bert",
        # Every record in every step, so that a plain loop gives the same update.
        training={"learning_rate": _LEARNING_RATE, "sampling_rate": 1.0, "local_steps": STEPS},
        privacy={"unit": "site", "noise": noise, "clipping_norm": norm},
    )


def _updates(material: Material, config: RunConfig) -> Vector:
    """Return each site's update as a plain loop finds it, (sites, P)."""
    model = material.model(config)
    rows = []
    for name in SITES:
        dataset = dataset_of(records_of(name), config, model)
        settings = mechanism_of(config).settings(dataset.number_of_units, None)
        rows.append(plain_steps(model, dataset, replace(settings, noise_multiplier=None)))
    return np.stack(rows)
