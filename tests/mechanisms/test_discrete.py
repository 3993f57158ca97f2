"""The grid of integers on which discrete noise is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from fedllm.errors import ConfigError, TrainingError
from fedllm.mechanisms import discrete as module
from fedllm.randomness import RandomStream


def test_levels_without_room_or_with_too_much_noise_are_refused(monkeypatch):
    grid = module.IntegerGrid(half=10_000, clipping_steps=100.0, bound=1.0, shares=2, length=4)
    total = np.array([0.0, 1.0, -1.0, 1e9])
    levels = grid.noised_levels(total, 2.0, 1.0, RandomStream.seeded(1)).astype(np.int64)
    deviation = grid.share(1.0)
    room = grid.half - 16 * deviation - 1
    noise = levels - grid.half - np.array([0, -50, 50, -room])
    assert np.abs(noise).max() <= 16 * deviation
    with pytest.raises(ConfigError, match="leaves no room"):
        grid.noised_levels(total, 2.0, 1e6, RandomStream.seeded(1))
    monkeypatch.setattr(module, "discrete_gaussian", lambda *_: np.zeros(4, np.int64))
    cut = grid.noised_levels(total, 2.0, 1.0, RandomStream.seeded(1)).astype(np.int64)
    assert (cut - grid.half).tolist() == [0, -50, 50, -room]
    for drawn, fits in ((10_000, True), (10_001, False)):
        monkeypatch.setattr(module, "discrete_gaussian", lambda *_, n=drawn: np.full(4, n))
        if fits:
            assert (
                grid.noised_levels(np.zeros(4), 2.0, 1.0, RandomStream.seeded(1)) == 20_000
            ).all()
        else:
            with pytest.raises(TrainingError, match="does not fit its levels"):
                grid.noised_levels(np.zeros(4), 2.0, 1.0, RandomStream.seeded(1))
