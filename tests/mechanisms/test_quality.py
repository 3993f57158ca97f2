from __future__ import annotations

from math import sqrt

import pytest

from fedllm.config import RunConfig, parse
from fedllm.mechanisms.quality import Law, fitted_law, noise_of

LAW = Law(half=2e-3, power=1.5, error=0.05, runs=20, task="classification", source="made up")


def config(**sections):
    values = {
        "name": "x",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": "t", "sites": 4},
        "privacy": {"epsilon": 8.0},
        "rounds": {"count": 25},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse(RunConfig, values, "test")


def test_half_of_the_gain_is_lost_where_the_law_says_it():
    assert LAW.lost(2e-3) == pytest.approx(0.5)
    assert LAW.lost(0.0) == 0.0
    kept = [LAW.kept(noise)[0] for noise in (1e-4, 1e-3, 1e-2, 1e-1)]
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize("noise", [1e-9, 1e-3, 10.0])
def test_the_interval_lies_around_the_share_and_within_all_of_it(noise):
    share, low, high = LAW.kept(noise)
    assert 0.0 <= low <= share <= high <= 1.0


def test_noise_counts_as_in_one_place_with_all_records():
    # Every site in each sum: shares add up to the noise that one party alone would add.
    assert noise_of(config(), 2.0, 0.5, 100, 4) == pytest.approx(2.0 / (0.5 * 400 * sqrt(25)))


def test_noise_that_every_site_adds_by_itself_is_more():
    shared, local = config(), config(privacy={"noise": "local"})
    ratio = noise_of(local, 2.0, 0.5, 100, 4) / noise_of(shared, 2.0, 0.5, 100, 4)
    assert ratio == pytest.approx(2.0)
    # Half of the sites are enough for a sum, so each adds as much as half of them would.
    half = config(rounds={"min_sites": 2})
    ratio = noise_of(half, 2.0, 0.5, 100, 4) / noise_of(shared, 2.0, 0.5, 100, 4)
    assert ratio == pytest.approx(sqrt(2.0))


def test_the_law_of_the_package_says_what_it_was_fitted_on():
    law = fitted_law()
    assert law.runs >= 10 and 0 < law.error < 0.2 and "benchmarks/quality.py" in law.source
    assert law.power > 0 and law.half > 0
