"""Orthogonalised momentum: against its definition, and torch's own Muon."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedllm.config import RoundsSection
from fedllm.models.manifest import AdapterManifest
from fedllm.training.muon import orthogonal
from fedllm.training.server_optimizer import ServerOptimizer

MANIFEST = AdapterManifest.of(
    [("a.lora_B", (6, 3), "lora"), ("head.weight", (2, 5), "head"), ("head.bias", (2,), "head")]
)


def made(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_singular_values_are_all_alike_and_values_have_root_mean_square_one(rows, columns, seed):
    values = made(rows, columns, seed)
    found = orthogonal(values)
    sizes = np.linalg.svd(found, compute_uv=False)
    np.testing.assert_allclose(sizes, np.sqrt(max(rows, columns)), rtol=1e-9)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(1.0)
    # The nearest of its kind: what it has in common with the matrix is the sum of its sizes.
    nearest = np.linalg.svd(values, compute_uv=False).sum() * np.sqrt(max(rows, columns))
    assert np.sum(found * values) == pytest.approx(nearest)


@given(st.integers(1, 6), st.floats(1e-20, 1e20), st.integers(0, 9))
def test_neither_size_nor_a_turn_of_the_matrix_changes_anything_else(rows, scale, seed):
    values, turn = made(rows, 4, seed), np.linalg.qr(made(4, 4, seed + 1)).Q
    np.testing.assert_allclose(orthogonal(values * scale), orthogonal(values), atol=1e-9)
    np.testing.assert_allclose(orthogonal(values @ turn), orthogonal(values) @ turn, atol=1e-9)


def test_a_vector_keeps_its_direction():
    vector = np.array([3.0, 0.0, -4.0])
    np.testing.assert_allclose(orthogonal(vector), vector / 5 * np.sqrt(3))
    np.testing.assert_allclose(orthogonal(np.array(-2.0)), -1.0)


def test_where_there_is_nothing_nothing_moves():
    assert not orthogonal(np.zeros((4, 3))).any()
    once = np.outer([1.0, 2.0, 2.0], [0.0, 1.0])
    np.testing.assert_allclose(orthogonal(once), once / 3 * np.sqrt(3), atol=1e-12)


def test_of_more_than_two_axes_all_but_the_first_are_one():
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    expected = orthogonal(values.reshape(2, 12)).reshape(2, 3, 4)
    np.testing.assert_array_equal(orthogonal(values), expected)


def test_the_coordinator_turns_each_tensor_by_itself_and_each_group_has_its_rate():
    rounds = RoundsSection(
        optimizer="muon", learning_rate=0.1, head_learning_rate=0.3, momentum=0.5
    )
    server, rng = ServerOptimizer(rounds, MANIFEST), np.random.default_rng(1)
    start = rng.normal(size=30).astype(np.float32)
    updates = rng.normal(size=(2, 30))
    between = server.apply(start, updates[0])
    result = server.apply(between, updates[1]).astype(np.float64)
    mean = updates[0] * 0.25 + updates[1] * 0.5
    for segment in MANIFEST.segments:
        rate = 0.3 if segment.group == "head" else 0.1
        step = orthogonal(mean[segment.slice].reshape(segment.shape)).ravel() * rate
        moved = result[segment.slice] - between[segment.slice]
        np.testing.assert_allclose(moved, step, atol=1e-6)


def test_torch_comes_near_it():
    weight = torch.nn.Parameter(torch.zeros(6, 3, dtype=torch.float64))
    theirs = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.8, nesterov=False)
    ours = ServerOptimizer(
        RoundsSection(optimizer="muon", learning_rate=1.0, momentum=0.8),
        AdapterManifest.of([("a.lora_B", (6, 3), "lora")]),
    )
    adapter = np.zeros(18, dtype=np.float32)
    for update in np.random.default_rng(2).normal(size=(3, 18)):
        weight.grad = torch.tensor(-update).reshape(6, 3)
        before, old = weight.detach().clone(), adapter
        theirs.step()
        adapter = ours.apply(adapter, update)
        step, expected = (weight.detach() - before).numpy().ravel(), adapter - old
        cosine = step @ expected / np.linalg.norm(step) / np.linalg.norm(expected)
        # Five steps of its iteration leave singular values between about 0.7 and 1.2.
        assert cosine > 0.97
