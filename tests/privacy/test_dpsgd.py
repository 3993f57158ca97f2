"""DP-SGD against loops over single records and persons, and against Opacus's optimiser."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.optimizers import DPOptimizer

from fedllm.config.task import trains_a_head
from fedllm.errors import TrainingError
from fedllm.privacy.dpsgd import (
    OuterProducts,
    added_up,
    clipped,
    clipping_weight,
    forget_step,
    noised_mean,
    per_sample_gradients,
    per_sample_hooks,
    poisson_batch,
)
from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream
from fedllm.training.objectives import record_losses

CASES = [
    ("bert", "classification"),
    ("llama", "classification"),
    ("bert", "token_classification"),
    ("gpt2", "token_classification"),
    ("llama", "instruction"),
    ("gpt2", "classification"),
    ("gpt2", "causal"),
]


def gradients_one_by_one(model, data, indices):
    result = []
    for index in indices:
        loss = record_losses(model, data.batch(np.array([index])))
        parts = torch.autograd.grad(loss.sum(), model.trained)
        result.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(result)


def dense(gradient):
    if isinstance(gradient, torch.Tensor):
        return gradient
    return gradient.backprops[:, :, None] * gradient.activations[:, None, :]


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("rank", [2, 0])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_per_sample_gradients_equal_a_loop_over_records(
    kind, task, rank, rows, tiny_model, random_dataset
):
    if rank == 0 and not trains_a_head(task):
        pytest.skip("a language model has no head of its own to train")
    layers = {"rank": rank, "last_layers": 2 if rank else None}
    model, data = tiny_model(kind, task, lora=layers), random_dataset(6, task)
    indices = np.array([5, 0, 3, 3, 1])
    expected = gradients_one_by_one(model, data, indices)
    batch = model.prefix.attach(data, indices, data.batch(indices))
    with per_sample_hooks(model.module, model.row_layers if rows else ()):
        found = per_sample_gradients(model.trained, lambda: record_losses(model, batch))
    assert any(isinstance(g, OuterProducts) for g in found) is (rows and task == "classification")
    flat = torch.cat([dense(g).flatten(1) for g in found], dim=1)
    for row, reference in zip(flat, expected, strict=True):
        assert reference.norm() > 1e-2
        assert (row - reference).norm() <= 2e-3 * reference.norm()


def rows_of(gradients):
    return torch.cat([dense(g).flatten(1).double() for g in gradients], dim=1).numpy()


def test_clipped_mean_equals_opacus_optimizer_without_noise(tiny_model, random_dataset):
    model, data = tiny_model("bert"), random_dataset(8)
    batch = data.batch(np.arange(8))
    norm = 0.7 * float(gradients_one_by_one(model, data, range(8)).norm(dim=1).median())
    with per_sample_hooks(model.module):
        gradients = per_sample_gradients(model.trained, lambda: record_losses(model, batch))
        ours = [clipped(row, norm) for row in rows_of(gradients)]
        oracle = DPOptimizer(
            torch.optim.SGD(model.trained, lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=norm,
            expected_batch_size=5,
        )
        record_losses(model, batch).sum().backward()
        oracle.pre_step()
    theirs = torch.cat([p.grad.reshape(-1) for p in model.trained]).numpy()
    assert 0 < sum(each.norm > norm for each in ours) < 8
    total = np.sum([each.values for each in ours], axis=0)
    np.testing.assert_allclose(total / 5, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [False, True])
def test_a_persons_gradient_is_the_sum_over_its_records(rows, tiny_model, random_dataset):
    model, data = tiny_model("bert"), random_dataset(5)
    expected = gradients_one_by_one(model, data, range(5)).sum(0)
    batch = data.batch(np.arange(5))
    with per_sample_hooks(model.module, model.row_layers if rows else ()):
        gradients = per_sample_gradients(model.trained, lambda: record_losses(model, batch))
    np.testing.assert_allclose(added_up(gradients), expected, atol=2e-3 * float(expected.norm()))


@settings(max_examples=60)
@given(
    scale=st.sampled_from([0.0, 1e-300, 1e-30, 1e-3, 1.0, 1e4, 1e18, 1e300]),
    norm=st.floats(1e-12, 1e12),
    seed=st.integers(0, 2**31),
)
def test_one_unit_adds_at_most_the_clipping_norm(scale, norm, seed):
    gradient = scale * RandomStream.seeded(seed).normal(40)
    found = clipped(gradient, norm)
    size = np.linalg.norm(found.values / norm)
    assert size <= 1 + 1e-14
    assert found.norm == pytest.approx(np.linalg.norm(gradient / (scale or 1.0)) * scale)
    if found.norm * 1e-307 > norm:
        assert size == pytest.approx(1.0, abs=1e-14) or not size
    elif found.norm >= norm:
        assert size == pytest.approx(1.0, abs=1e-14)
    else:
        np.testing.assert_array_equal(found.values, gradient)


def test_factors_add_up_as_full_gradients_do():
    random = torch.Generator().manual_seed(1)
    factors = OuterProducts(
        torch.randn(5, 4, generator=random), torch.randn(5, 3, generator=random)
    )
    other = torch.randn(5, 4, generator=random)
    np.testing.assert_allclose(
        added_up([factors, other]), added_up([dense(factors), other]), atol=1e-6
    )


def test_a_row_layer_used_twice_is_refused():
    layer = torch.nn.Linear(2, 2)
    with per_sample_hooks(layer, [layer]), pytest.raises(TrainingError, match="no gradient for"):
        per_sample_gradients(
            list(layer.parameters()), lambda: layer(layer(layer(torch.ones(3, 2)))).sum(1)
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_unit_whose_gradient_is_not_finite_adds_nothing(bad):
    found = clipped(np.array([3.0, bad, 1.0]), 1.0)
    assert (found.values.tolist(), found.norm) == ([0.0, 0.0, 0.0], np.inf)


def test_what_hooks_kept_of_a_step_that_broke_off_is_forgotten():
    layer = torch.nn.Linear(2, 1)

    class Broken(Exception):
        pass

    def breaks_off(gradient):
        raise Broken

    with per_sample_hooks(layer):
        states = layer(torch.full((3, 2), 7.0))
        states.register_hook(breaks_off)
        with pytest.raises(Broken):
            states.sum().backward()
        for parameter in layer.parameters():
            parameter._current_grad_sample = torch.full((3, *parameter.shape), 7.0)
        forget_step(layer)
        found = per_sample_gradients(
            list(layer.parameters()), lambda: layer(torch.ones(2, 2)).sum(1)
        )
    assert added_up(found).tolist() == [2.0, 2.0, 2.0]


def test_a_tensor_without_per_sample_gradients_is_refused():
    layer = torch.nn.Linear(2, 1)
    stray = torch.nn.Parameter(torch.ones(1))
    with per_sample_hooks(layer), pytest.raises(TrainingError, match="no gradient for each"):
        per_sample_gradients(
            [*layer.parameters(), stray], lambda: layer(torch.ones(3, 2)).sum(1) * stray
        )


def test_hooks_are_gone_after_the_block():
    layer = torch.nn.Linear(2, 1)
    with per_sample_hooks(layer):
        pass
    layer(torch.ones(3, 2)).sum().backward()
    assert getattr(layer.weight, "grad_sample", None) is None
    assert not hasattr(layer, "activations")


def test_noise_has_the_stated_deviation_whatever_the_sum():
    total = np.linspace(-50, 50, 40_000)
    stream = RandomStream.seeded(1)
    released = noised_mean(total, 1.5, 2.0, 20.0, stream)
    noise = released - total / 20.0
    assert noise.std() == pytest.approx(1.5 * 2.0 / 20.0, rel=0.02)
    assert abs(noise.mean()) < 4 * noise.std() / 200
    assert abs(np.corrcoef(noise, total)[0, 1]) < 0.02


def test_noise_is_never_used_twice():
    stream, total = RandomStream.seeded(1), np.zeros(1000)
    first = noised_mean(total, 1.0, 1.0, 1.0, stream)
    second = noised_mean(total, 1.0, 1.0, 1.0, stream)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_deviation_that_is_no_deviation_is_refused(bad):
    with pytest.raises(ValueError, match="finite and not negative"):
        gaussian_noise(RandomStream.seeded(0), 3, bad)


def test_batches_are_poisson_and_not_shuffled():
    units, stream = np.arange(200), RandomStream.seeded(5)
    rate, draws = 0.1, 2000
    chosen = np.zeros((draws, 200), dtype=bool)
    for draw in range(draws):
        chosen[draw, poisson_batch(units, 200, rate, stream)] = True
    sizes = chosen.sum(1)
    assert sizes.mean() == pytest.approx(20, rel=0.02)
    # A shuffled or fixed-size batch has no variance in its size.
    assert sizes.var() == pytest.approx(200 * rate * (1 - rate), rel=0.15)
    # In shuffled epochs a record comes once in ten batches, never twice in a row.
    assert (chosen[1:] & chosen[:-1]).mean() == pytest.approx(rate**2, rel=0.1)
    # Two records are chosen independently of each other.
    assert (chosen[:, ::2] & chosen[:, 1::2]).mean() == pytest.approx(rate**2, rel=0.1)


def test_persons_are_chosen_with_all_their_records():
    units, stream = np.array([0, 1, 1, 2, 2, 2]), RandomStream.seeded(2)
    counts = np.zeros(3)
    for _ in range(500):
        found = set(poisson_batch(units, 3, 0.3, stream).tolist())
        for person in range(3):
            records = set(np.flatnonzero(units == person).tolist())
            assert records <= found or not records & found
            counts[person] += records <= found
    assert np.all(np.abs(counts / 500 - 0.3) < 0.08)


@pytest.mark.parametrize("large", [1, 64, 4096])
@pytest.mark.parametrize("length", [2**10, 2**20])
def test_no_rounding_lifts_a_unit_over_its_norm(length, large):
    """Many small values beside a few large ones are lost one by one in a sum of squares."""
    gradient = np.full(length, 0.7e-8 * math.sqrt(large))
    gradient[:large] = 1.0
    values = clipped(gradient, 1e-3).values
    square = Fraction(values[0]) ** 2 * min(large, length)
    square += Fraction(values[-1]) ** 2 * max(length - large, 0)
    assert square <= Fraction(1e-3) ** 2
    assert float(square) == pytest.approx(1e-6, rel=1e-8)


def test_the_margin_for_rounding_is_one_for_each_value_and_eight_more():
    """Fewer would let a unit over its norm; more would lose what it may add."""
    assert clipping_weight(1.0, 2, 1.0) == 1.0 / (1.0 + 10 * 2.0**-53)
    assert 1.0 / clipping_weight(2.0, 2**20, 2.0) - 1.0 == pytest.approx(
        (2**20 + 8) * 2.0**-53, rel=1e-5
    )
    assert clipping_weight(0.5, 2, 1.0) == 1.0


@pytest.mark.parametrize("length", [1e295, 3e299, 7e302])
def test_a_gradient_too_long_for_a_weight_in_full_precision_adds_nothing(length):
    """A weight of few digits, rounded up, would let it over its norm."""
    values = clipped(np.array([0.6 * length, 0.8 * length]), 1e-12).values
    size = np.linalg.norm(values / 1e-12)
    assert size == (0.0 if length > 1e298 else pytest.approx(1.0, abs=1e-14))
    assert size <= 1 + 1e-14


def test_the_smallest_weight_is_the_smallest_normal_number():
    assert clipping_weight(2.0**1000, 2, 2.0**-21) > 0.0
    assert clipping_weight(2.0**1000, 2, 2.0**-23) == 0.0
