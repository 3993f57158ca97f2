"""Sums of scores at the sites: room for them, and for their noise."""

from __future__ import annotations

import pytest
from support.mechanisms import DISTRIBUTED, PRIVATE, SHARED, config

from fedllm.errors import ConfigError
from fedllm.mechanisms.bounds import Room
from fedllm.mechanisms.evaluation import EvaluationSums


def test_a_sites_whole_noise_is_never_too_small_for_its_levels(monkeypatch):
    """Rounding hides nothing of a share where the site has no share but all of it."""
    alone = EvaluationSums(config({"epsilon": 1e5}, evaluation={"every": 3, "epsilon": 9e4}))
    assert 0 < alone.deviation(1) < alone.room(1).least_deviation(alone.BITS)
    shared = {**DISTRIBUTED, "epsilon": 1e5}
    together = EvaluationSums(config(shared, SHARED, evaluation={"every": 3, "epsilon": 9e4}))
    with pytest.raises(ConfigError, match="so small that rounding"):
        together.room(1)
    # What is exactly as large as that is enough.
    monkeypatch.setattr(Room, "least_deviation", lambda room, bits: room.deviation)
    assert together.room(1).deviation == together.deviation(1)


def test_sums_of_evaluations_have_room_for_any_site():
    assert (EvaluationSums.LARGEST_SUM, EvaluationSums.BITS) == (262144.0, 24)
    asked = config(PRIVATE, evaluation={"every": 3})
    assert EvaluationSums(asked).rounds == (3, 4)
    with pytest.raises(ConfigError, match="the run does not evaluate at the sites"):
        _ = EvaluationSums(config(PRIVATE)).event


def test_noise_of_evaluations_leaves_a_quarter_for_their_sums(monkeypatch):
    monkeypatch.setattr(EvaluationSums, "deviation", lambda self, entries: float(entries))
    sums = EvaluationSums(config(PRIVATE, evaluation={"every": 3}))
    # Sixteen of these deviations are three quarters of 2**18.
    assert sums.room(12_288).signal == 2**16
    with pytest.raises(ConfigError, match="leaves no room for the sums"):
        sums.room(12_289)
