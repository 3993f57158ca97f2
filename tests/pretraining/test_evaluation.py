"""Held-out figures: by hand, over all texts and for each."""

import math

import numpy as np
import pytest
import torch

from fedllm.pretraining.evaluation import held_out_figures, held_out_sums
from fedllm.pretraining.objectives import Objective
from fedllm.pretraining.parallel import World


class Sums(Objective):
    """A loss that is the sum of the tokens, each of them a target."""

    parts = measures = ("loss",)

    def __init__(self):
        super().__init__(torch.nn.Linear(1, 1))
        self.calls = 0

    def batch(self, pieces, random):
        return {"rows": torch.from_numpy(np.stack(pieces))}

    def targets(self, batch):
        return (batch["rows"].numel(),)

    def forward(self, batch):
        self.calls += 1
        return batch["rows"].sum()[None].float()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_share_the_batches_and_run_equally_often(size, monkeypatch):
    pieces = [np.arange(4)] * 5 + [np.arange(3)] * 2
    monkeypatch.setattr(World, "total", lambda self, *values: list(values))
    totals, calls = np.zeros((2, 1)), set()
    for rank in range(size):
        objective = Sums()
        world = World(rank, size, torch.device("cpu"))
        autocast = torch.autocast("cpu", enabled=False)
        totals += held_out_sums(objective, pieces, 2, world, autocast)
        calls.add(objective.calls)
    assert totals.tolist() == [[5 * 6 + 2 * 3], [5 * 4 + 2 * 3]]
    assert calls == {math.ceil(4 / size)}


def test_bits_per_byte_over_all_is_that_of_the_joined_text():
    one, other = np.asarray([[70.0], [10.0]]), np.asarray([[30.0], [50.0]])
    figures = held_out_figures(("loss",), {"a/b": one, "c/d": other}, {"a/b": 40, "c/d": 160})
    assert figures == pytest.approx(
        {
            "bits_per_byte": 100 / math.log(2) / 200,
            "bits_per_byte/a/b": 70 / math.log(2) / 40,
            "bits_per_byte/c/d": 30 / math.log(2) / 160,
        }
    )
    assert held_out_figures(("loss", "accuracy"), {"x": np.asarray([[6, 1], [3, 4]])}, {}) == {
        "held_out_loss": 2.0,
        "held_out_accuracy": 0.25,
    }
