"""What docs/threat-model.md says of a person with records at several sites, computed again."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest

from fedllm.config import RunConfig, parse
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.accounting.gaussian import gaussian_epsilon

ROUNDS, DELTA = 20, 1e-5
PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"


def epsilon_at(noise: str, sites: int) -> float:
    """Return the exact epsilon of a person whose records at each site point the same way."""
    rate = {"sampling_rate": 1.0} if noise == "distributed" else {}
    config = parse(
        RunConfig,
        {
            "name": "x",
            "task": "classification",
            "model": {"path": "m"},
            "data": {"train": "t.jsonl", "labels": ["a", "b"], "sites": 10, "unit": "patient"},
            "rounds": {"count": ROUNDS, "min_sites": 10},
            "training": {"local_steps": 1, "optimizer": "sgd", "batch_size": 1000, **rate},
            "privacy": {"epsilon": 8.0, "delta": DELTA, "noise": noise},
        },
        "run.toml",
    )
    mechanism = mechanism_of(config)
    multiplier = mechanism.needed_noise(1000, 1, ())
    (event,) = mechanism.cost(1000, 1000, multiplier).events
    assert event.sampling_rate == 1.0
    # One sum under one noise, or as many sums as sites, each under its own.
    together = sites if noise == "distributed" else sqrt(sites)
    return gaussian_epsilon(together * sqrt(ROUNDS) / multiplier, DELTA)


@pytest.mark.parametrize(
    ("noise", "sites", "stated"),
    [
        ("distributed", 1, None),
        ("local", 1, None),
        ("distributed", 2, "19.1"),
        ("distributed", 3, "33.1"),
        ("local", 2, "12.3"),
        ("local", 3, "15.9"),
    ],
)
def test_the_page_says_what_a_person_at_several_sites_is_promised(noise, sites, stated):
    found = epsilon_at(noise, sites)
    if stated is None:
        assert 7.9 < found <= 8.0
    else:
        assert f"{found:.1f}" == stated
        assert stated in PAGE.read_text()
