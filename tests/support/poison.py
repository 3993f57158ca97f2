"""A site that does not send what its records gave."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np
import pytest
from numpy.typing import NDArray

from fedllm.federation.site.work import SiteWork

# Levels (P,) that a site would send, and the largest of them, to those that it sends.
Change = Callable[[NDArray[np.uint64], int], NDArray[np.uint64]]


def at_the_bound(levels: NDArray[np.uint64], top: int) -> NDArray[np.uint64]:
    """Send the largest value everywhere."""
    return np.full_like(levels, top)


def odd_signs(levels: NDArray[np.uint64], top: int) -> NDArray[np.uint64]:
    """Send the bound with signs in a pattern that has no meaning, the same each time."""
    signs = np.random.default_rng(5).integers(0, 2, len(levels))
    return (signs * top).astype(np.uint64)


def times(factor: float) -> Change:
    """Send one's own update so many times as large, as far as the levels go."""

    def change(levels: NDArray[np.uint64], top: int) -> NDArray[np.uint64]:
        moved = (levels.astype(np.float64) - top // 2) * factor + top // 2
        return np.clip(np.rint(moved), 0, top).astype(np.uint64)

    return change


def poison(patch: pytest.MonkeyPatch, site: str, change: Change, rounds: Container[int]) -> None:
    """Let one site of a simulation send something else in some rounds."""
    right = SiteWork.train

    def train(self, order, dataset, noise_multiplier):
        levels, statistics = right(self, order, dataset, noise_multiplier)
        if self._name == site and order.statement.round in rounds:
            levels = change(levels, order.quantiser.top_level)
        return levels, statistics

    patch.setattr(SiteWork, "train", train)
