"""A model that fits its records perfectly has nothing left to learn, and no fault."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedllm.errors import TrainingError
from fedllm.mechanisms import LocalSettings
from fedllm.randomness import RandomStream
from fedllm.training.local import train_locally

SETTINGS = LocalSettings(
    steps=2,
    sampling_rate=1.0,
    expected_batch_size=5.0,
    microbatch_size=64,
    optimizer="sgd",
    learning_rate=0.1,
    head_learning_rate=0.1,
    clipping_norm=0.5,
    noise_multiplier=None,
)


def fitting(tiny_model, random_dataset, gap):
    """Return a head that is sure of the one label of all records, by this many nats."""
    model, data = tiny_model(), random_dataset(10)
    start = model.adapter()
    for segment in model.manifest.segments:
        if segment.name == "head.weight":
            start[segment.slice] = 0.0
        if segment.name == "head.bias":
            start[segment.slice] = [-gap / 2, gap / 2, -gap / 2]
    model.set_adapter(start)
    return model, replace(data, targets=np.ones(10, dtype=np.int32))


def train(model, data, settings=SETTINGS):
    streams = RandomStream.seeded(1, "sampling"), RandomStream.seeded(1, "noise")
    return train_locally(model, data, settings, *streams)


# At 60 nats gradients are left that no longer change a bias; at 300 there are none.
@pytest.mark.parametrize("gap", [60.0, 300.0])
def test_gradients_that_vanish_because_nothing_is_left_to_learn_are_no_fault(
    gap, tiny_model, random_dataset
):
    result = train(*fitting(tiny_model, random_dataset, gap))
    assert result.statistics.loss == 0.0
    assert np.abs(result.update).max() < 1e-12


def test_a_tensor_that_had_something_to_learn_and_stays_is_still_refused(
    tiny_model, random_dataset
):
    model, data = fitting(tiny_model, random_dataset, 60.0)
    wrong = replace(data, targets=np.zeros(10, dtype=np.int32))
    with pytest.raises(TrainingError, match=r"did not reach .*head\.bias"):
        train(model, wrong, replace(SETTINGS, head_learning_rate=1e-60))
