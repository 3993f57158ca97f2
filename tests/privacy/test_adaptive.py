"""A clipping norm that follows the gradients, and what its count costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.config import RunConfig
from fedllm.mechanisms import LocalSettings
from fedllm.privacy import dpsgd
from fedllm.privacy.adaptive import (
    COUNT_WEIGHT,
    LARGEST,
    SMALLEST,
    AdaptiveClipping,
    joint_vector,
    sensitivity,
)
from fedllm.randomness import RandomStream
from fedllm.training import local
from fedllm.training.local import train_locally
from fedllm.training.observed import StepRecord


def clipped(rows, norm):
    lengths = np.linalg.norm(rows, axis=1)
    weights = np.minimum(1.0, norm / np.maximum(lengths, 1e-300))
    return (rows * weights[:, None]).sum(0), lengths


@settings(max_examples=100)
@given(
    units=st.integers(1, 20),
    norm=st.floats(0.01, 100),
    scale=st.floats(0.001, 1000),
    seed=st.integers(0, 2**32),
)
def test_no_unit_moves_sum_and_count_by_more_than_is_charged(units, norm, scale, seed):
    rows = scale * RandomStream.seeded(seed).normal(units * 5).reshape(units, 5)
    everyone = joint_vector(*clipped(rows, norm), norm)
    for left_out in range(units):
        others = joint_vector(*clipped(np.delete(rows, left_out, 0), norm), norm)
        assert np.linalg.norm(everyone - others) <= sensitivity() * (1 + 1e-9)


def test_the_bound_is_reached():
    rows = np.array([[3.0, 4.0]])
    alone = joint_vector(*clipped(rows, 5.0), 5.0)
    nobody = joint_vector(np.zeros(2), np.empty(0), 5.0)
    assert np.linalg.norm(alone - nobody) == pytest.approx(sensitivity())


def test_the_count_costs_two_percent_more_noise():
    assert sensitivity() == pytest.approx(1.02, abs=5e-4)


def test_noise_covers_both_at_their_common_sensitivity():
    stream = RandomStream.seeded(4)
    released = []
    for _ in range(400):
        clipping = AdaptiveClipping(2.0, 0.5)
        mean = clipping.noised_mean(np.zeros(50), np.empty(0), 3.0, 10.0, stream)
        moved = -math.log(clipping.norm / 2.0) / 0.2
        released.append((mean.std() * 10 / 2, moved))
    deviation = 3.0 * math.hypot(1, COUNT_WEIGHT)
    assert np.mean([part for part, _ in released]) == pytest.approx(deviation, rel=0.02)
    # The count's noise, seen through the norm's way: clipped to a half either side.
    count = deviation / (2 * COUNT_WEIGHT) / 10
    draws = np.clip(RandomStream.seeded(5).normal(100_000) * count, -0.5, 0.5)
    assert np.std([moved for _, moved in released]) == pytest.approx(draws.std(), rel=0.1)


@pytest.mark.parametrize("start", [0.01, 50.0])
def test_the_norm_finds_the_quantile(start):
    stream = RandomStream.seeded(6)
    clipping = AdaptiveClipping(start, 0.7)
    norms = np.abs(stream.normal(500)) + 1.0
    for _ in range(150):
        clipping.noised_mean(np.zeros(3), norms, 1.0, 500.0, stream)
    assert np.mean(norms <= clipping.norm) == pytest.approx(0.7, abs=0.05)


def test_training_uses_the_norm_as_it_moves(tiny_model, random_dataset):
    model, data = tiny_model("bert", lora={"rank": 0}), random_dataset(30)
    asked = LocalSettings(
        steps=60,
        sampling_rate=1.0,
        expected_batch_size=30.0,
        microbatch_size=8,
        optimizer="adam",
        learning_rate=1e-6,
        head_learning_rate=1e-6,
        clipping_norm=1.0,
        noise_multiplier=0.5,
        clipping_quantile=0.5,
    )
    streams = [RandomStream.seeded(1, purpose) for purpose in ("sampling", "noise")]
    result = train_locally(model, data, asked, *streams)
    record = StepRecord(model.manifest)
    with dpsgd.per_sample_hooks(model.module, model.row_layers):
        local._gradient_sum(model, data, np.arange(30), asked, record)
    lengths = np.concatenate(record.norms)
    assert np.mean(lengths <= result.clipping_norm) == pytest.approx(0.5, abs=0.2)
    fixed = train_locally(model, data, replace(asked, clipping_quantile=None), *streams)
    assert fixed.clipping_norm == 1.0


@pytest.mark.parametrize(("start", "norms"), [(1e-12, [0.0] * 9), (1e12, [1e300] * 9)])
def test_the_norm_stays_where_it_may_be_configured(start, norms):
    clipping = AdaptiveClipping(start, 0.5)
    clipping.noised_mean(np.zeros(2), np.array(norms), 1e-9, 9.0, RandomStream.seeded(1))
    assert clipping.norm == start
    assert (SMALLEST, LARGEST) == (1e-12, 1e12)
    field = RunConfig.model_fields["privacy"].annotation.model_fields["clipping_norm"]
    assert str(field.metadata).count("1e-12") == str(field.metadata).count("1000000000000.0") == 1
