"""The core: its basis is the base's own, hooks see it, and nothing else of a site decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adapters.test_methods import METHODS, model_of

from fedllm.adapters import adapter_of
from fedllm.errors import ConfigError
from fedllm.models.core import basis
from fedllm.models.lora import ORTHONORMAL_SCALE, orthonormal_rows
from fedllm.privacy.dpsgd import OuterProducts, per_sample_gradients, per_sample_hooks
from fedllm.randomness import RandomStream
from fedllm.training.objectives import record_losses


def random_weights(shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16)])
def test_the_basis_is_made_of_the_first_singular_vectors(shape):
    weights = random_weights(shape)
    a, b = basis(weights, 3, RandomStream.seeded(1))
    left, sizes, right = np.linalg.svd(weights.numpy())
    np.testing.assert_allclose(np.abs(np.sum(a.numpy() * right[:3], axis=1)), 1, atol=1e-9)
    np.testing.assert_allclose(a @ a.T, np.eye(3), atol=1e-9)
    scale = np.sqrt(np.mean(sizes[:3] ** 2))
    np.testing.assert_allclose(b @ a * scale, left[:, :3] * sizes[:3] @ right[:3], atol=1e-9)
    assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()


def test_the_basis_of_a_wide_layer_is_nearly_that(monkeypatch):
    weights = random_weights((90, 60)) @ torch.diag(0.8 ** torch.arange(60.0, dtype=torch.float64))
    exact = basis(weights, 4, RandomStream.seeded(1))
    monkeypatch.setattr("fedllm.models.core._EXACT_WIDTH", 30)
    for found, right in zip(basis(weights, 4, RandomStream.seeded(1)), exact, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)


def test_the_basis_does_not_depend_on_how_large_the_weights_are():
    for factor in (1e-3, 1e3):
        for one, two in zip(
            basis(random_weights((8, 6)), 2, RandomStream.seeded(1)),
            basis(factor * random_weights((8, 6)), 2, RandomStream.seeded(1)),
            strict=True,
        ):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_gradients_of_single_records_are_those_of_a_loop(
    tiny_checkpoint, random_dataset, monkeypatch, method, kind, number
):
    model = model_of(tiny_checkpoint, method, kind, model={"feature_scale": 0.0})
    # In float64, so that hooks and loop differ in their last digits alone.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    place = adapter_of(model, number)
    start = place.start() + 0.3 * np.random.default_rng(5).normal(size=place.down.length)
    place.place(start.astype(np.float32))
    model.module.double()
    batch = random_dataset(5).batch(np.arange(5))
    with per_sample_hooks(model.module, model.row_layers):
        found = per_sample_gradients(model.trained, lambda: record_losses(model, batch))
    for row in range(5):
        one = random_dataset(5).batch(np.array([row]))
        right = torch.autograd.grad(record_losses(model, one).sum(), model.trained)
        for values, segment, wanted in zip(found, model.manifest.segments, right, strict=True):
            if isinstance(values, OuterProducts):
                own = torch.outer(values.backprops[row], values.activations[row])
            else:
                own = values[row]
            assert wanted.any(), segment.name
            torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-12)


def test_what_the_model_does_follows_from_base_and_adapter_alone(
    tiny_checkpoint, random_dataset, monkeypatch
):
    """Also where another processor finds other singular vectors, which are as good."""
    ours = model_of(tiny_checkpoint, "core")
    monkeypatch.setattr(
        "fedllm.models.core.basis", lambda *about: tuple(-part.flip(0) for part in basis(*about))
    )
    theirs = model_of(tiny_checkpoint, "core")
    bases = [model.untrained(model.tensors.only("A", "B")) for model in (ours, theirs)]
    assert not np.allclose(*bases)
    adapter = adapter_of(theirs).start()
    adapter += 0.3 * np.random.default_rng(1).normal(size=len(adapter)).astype(np.float32)
    batch = random_dataset(4).batch(np.arange(4))
    found = []
    for model in (ours, theirs):
        adapter_of(model).place(adapter)
        with torch.no_grad():
            found.append(model.module(batch))
    assert torch.equal(*found)


def test_a_core_of_zero_is_the_base_and_learns_at_once(tiny_checkpoint, random_dataset):
    model = model_of(tiny_checkpoint, "core")
    assert not adapter_of(model).start()[model.tensors.places(model.tensors.only("R"))].any()
    model.set_adapter(np.full(model.manifest.length, 0.1, dtype=np.float32))
    with torch.no_grad():
        for segment, parameter in zip(model.manifest.segments, model.trained, strict=True):
            if segment.kind == "R":
                parameter.zero_()
    batch = random_dataset(4).batch(np.arange(4))
    gradients = torch.autograd.grad(record_losses(model, batch).sum(), model.trained)
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("method", ["core", "fedsvd", "ffa_orthonormal"])
def test_a_rank_above_the_width_is_refused(tiny_checkpoint, method):
    with pytest.raises(ConfigError, match="more than the width 16") as error:
        model_of(tiny_checkpoint, method, lora={"rank": 17})
    assert "16 or less" in error.value.remedy


def test_orthonormal_rows_are_orthonormal_and_span_the_same(tiny_checkpoint):
    rows = np.random.default_rng(1).uniform(-1, 1, size=(5, 30))
    found = orthonormal_rows(rows)
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-15)
    np.testing.assert_allclose(rows @ found.T @ found, rows, atol=1e-12)
    # Frobenius norm of the usual start: on average a third of the rank, squared.
    sizes = {}
    for method in ("ffa", "ffa_orthonormal"):
        model = model_of(tiny_checkpoint, method)
        a = model.untrained(model.tensors.only("A")).reshape(-1, 2, 16)
        sizes[method] = np.sum(a.astype(float) ** 2, axis=(1, 2))
    np.testing.assert_allclose(sizes["ffa_orthonormal"], 2 * ORTHONORMAL_SCALE**2, rtol=1e-6)
    assert 0.7 < np.mean(sizes["ffa"]) / np.mean(sizes["ffa_orthonormal"]) < 1.4


def test_orthonormal_rows_do_not_depend_on_who_adds_up(monkeypatch):
    """Bit for bit: no product of a library, whose order of adding differs by processor."""
    rows = np.random.default_rng(1).uniform(-1, 1, size=(4, 64))
    right = orthonormal_rows(rows)
    order = np.random.default_rng(2).permutation(64)
    again = orthonormal_rows(rows[:, order])
    assert np.array_equal(again, right[:, order])
