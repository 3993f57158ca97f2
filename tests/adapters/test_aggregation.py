"""What averaging A and B loses, seen in clear: why stacking and residual methods exist.

FLoRA (Wang et al. 2024) stacks the sites' A and B, and FedEx-LoRA (Singhal et al. 2025) adds to the
base what averaging lost; both need every site's own A and B. They are oracles here and nothing
else: a blind sum shows none of it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adapters.test_methods import ADAPTERS, model_of

from fedllm.adapters import adapter_of
from fedllm.config import RunConfig, parse
from fedllm.errors import ConfigError
from fedllm.training.objectives import record_losses

SITES = 3


def local_updates(model, number, datasets, steps, rate=0.2):
    """Return what each site would send, (sites, P), by plain steps on its own records."""
    method = adapter_of(model, number)
    start, sent = method.held(), []
    for data in datasets:
        method.place(start)
        before = model.adapter()
        for _ in range(steps):
            loss = record_losses(model, data.batch(np.arange(len(data)))).mean()
            gradients = torch.autograd.grad(loss, model.trained)
            with torch.no_grad():
                for parameter, gradient in zip(model.trained, gradients, strict=True):
                    parameter.sub_(rate * gradient)
        sent.append(method.upward(model.adapter() - before).astype(np.float64))
    method.place(start)
    return np.stack(sent)


def products(model, adapter, manifest):
    """Return B R A of every adapted layer."""
    parts = {s.name: adapter[s.slice].reshape(s.shape).astype(float) for s in manifest.segments}
    found = []
    for name, a in parts.items():
        if ".lora_A." in name:
            core = parts.get(name.replace(".lora_A.", ".lora_R."), np.eye(len(a)))
            found.append(parts[name.replace(".lora_A.", ".lora_B.")] @ core @ a)
    return np.concatenate([one.ravel() for one in found])


def lost(model, number, sent):
    """Return the norm of what averaging lost, over that of the mean of the sites' products."""
    whole, method = model.tensors, adapter_of(model, number)
    start, places = model.values(whole), whole.places(method.up)

    def product(change):
        moved = start.astype(np.float64)
        moved[places] += change
        return products(model, moved, whole)

    exact = np.mean([product(change) for change in sent], axis=0)
    gained = np.linalg.norm(exact - product(np.zeros(len(places))))
    return float(np.linalg.norm(product(sent.mean(axis=0)) - exact) / gained)


@pytest.fixture
def sites(random_dataset):
    return [random_dataset(6, seed=seed) for seed in range(SITES)]


def prepared(tiny_checkpoint, method):
    model = model_of(tiny_checkpoint, method)
    first = adapter_of(model)
    random = np.random.default_rng(4)
    first.place(first.start() + 0.3 * random.normal(size=first.down.length).astype(np.float32))
    return model


def test_averaged_lora_loses_with_local_steps(tiny_checkpoint, sites):
    model = prepared(tiny_checkpoint, "lora")
    assert lost(model, 1, local_updates(model, 1, sites, steps=8)) > 1e-3


def test_with_one_shared_step_nothing_is_lost_to_the_first_order(tiny_checkpoint, sites):
    """The mean of gradients at one point is the gradient of all: what is sent is no product.

    Both factors move, so their product moves by the rate's square beyond that; the site's own
    products do so too, each by its own gradients.
    """
    model = prepared(tiny_checkpoint, "lora")
    small = [lost(model, 1, local_updates(model, 1, sites, 1, rate)) for rate in (0.1, 0.05)]
    assert small[1] == pytest.approx(small[0] / 2, rel=0.1)
    # What the coordinator takes is the very step that one party with all records would take.
    sent = local_updates(model, 1, sites, 1).mean(axis=0)
    everyone = [site.batch(np.arange(len(site))) for site in sites]
    loss = torch.stack([record_losses(model, batch).mean() for batch in everyone]).mean()
    right = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, model.trained)])
    np.testing.assert_allclose(sent, -0.2 * right.double().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("method", ADAPTERS[1:])
def test_methods_that_move_one_factor_lose_nothing_however_many_steps(
    tiny_checkpoint, sites, method, number
):
    model = prepared(tiny_checkpoint, method)
    adapter_of(model, number).place(model.values(adapter_of(model).down))
    assert lost(model, number, local_updates(model, number, sites, steps=8)) < 1e-6


def test_stacking_and_residuals_lose_nothing_and_need_every_sites_own(tiny_checkpoint, sites):
    model = prepared(tiny_checkpoint, "lora")
    sent = local_updates(model, 1, sites, steps=8)
    manifest, start = model.tensors, model.values(model.tensors).astype(np.float64)
    of_sites = [
        {s.name: (start + change)[s.slice].reshape(s.shape) for s in manifest.segments}
        for change in sent
    ]
    exact = np.mean([products(model, start + change, manifest) for change in sent], axis=0)
    averaged = products(model, start + sent.mean(axis=0), manifest)
    stacked, repaired, place = [], [], 0
    for name in [s.name for s in manifest.segments if s.kind == "A"]:
        pair = [(site[name.replace(".lora_A.", ".lora_B.")], site[name]) for site in of_sites]
        # FLoRA: one adapter of SITES times the rank.
        b = np.concatenate([b for b, _ in pair], axis=1) / SITES
        a = np.concatenate([a for _, a in pair], axis=0)
        stacked.append((b @ a).ravel())
        # FedEx: what the averages' product lacks goes into the base.
        residual = np.mean([b @ a for b, a in pair], axis=0).ravel()
        size = residual.size
        repaired.append(averaged[place : place + size] + residual - averaged[place : place + size])
        place += size
    np.testing.assert_allclose(np.concatenate(stacked), exact, atol=1e-12)
    np.testing.assert_allclose(np.concatenate(repaired), exact, atol=1e-12)
    assert np.linalg.norm(averaged - exact) > 1e-3 * np.linalg.norm(exact)
    # Not linear in what is sent: twice the updates are not twice the product's change.
    double = np.mean([products(model, start + 2 * change, manifest) for change in sent], axis=0)
    base = products(model, start, manifest)
    assert np.linalg.norm(double - base - 2 * (exact - base)) > 1e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", ["flora", "fedex", "FLoRA", "fedex-lora", "FedEx-LoRA"])
def test_a_run_that_asks_for_one_is_refused_with_the_reason(name):
    values = {
        "name": "a",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": "t.jsonl"},
        "lora": {"method": name},
    }
    with pytest.raises(ConfigError, match="not linear in what a site sends"):
        parse(RunConfig, values, "run.toml")
