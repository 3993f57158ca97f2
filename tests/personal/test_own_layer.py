"""A site's own layer learns what the shared model lacks there, or stays away."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fedllm.adapters import adapter_of
from fedllm.personal.benefit import Difference, benefit_of, compare
from fedllm.personal.own_layer import fit_alone, fit_own_layer
from fedllm.tasks.scores import LOSS
from fedllm.training.evaluate import evaluate, unit_scores


def with_targets(data, targets, units=None):
    units = data.units if units is None else np.asarray(units, dtype=np.int64)
    targets = np.asarray(targets, dtype=data.targets.dtype)
    return dataclasses.replace(
        data, targets=targets, units=units, number_of_units=int(units.max()) + 1
    )


def of_a_teacher(model, data, turned=0):
    """Label each record as a random head on the same features does, in a way that may be turned."""
    with model.unchanged(), torch.no_grad():
        drawn = np.random.default_rng(8).normal(size=model.module.head.weight.shape)
        model.module.head.weight.copy_(torch.from_numpy(drawn))
        logits = model.module(data.batch(np.arange(len(data))))
        # Each label for about a third of them.
        labels = (logits - logits.mean(0)).argmax(1).numpy()
    return with_targets(data, (labels + turned) % 3)


@pytest.fixture
def head(tiny_model):
    return tiny_model(lora={"rank": 0}, trained=False)


def test_a_layer_learns_what_is_the_sites_own(head, random_dataset):
    site = of_a_teacher(head, random_dataset(90, seed=1))
    fresh = of_a_teacher(head, random_dataset(60, seed=2))
    before, loss = head.adapter(), evaluate(head, fresh)["loss"]
    layer = fit_own_layer(head, site)
    assert np.array_equal(head.adapter(), before)
    assert layer.epochs > 0
    assert 0 < layer.blend <= 1
    head.set_adapter(before + layer.change)
    assert evaluate(head, fresh)["loss"] < loss - 0.1


def test_where_there_is_nothing_to_learn_the_shared_model_is_kept(head, random_dataset):
    noise = np.random.default_rng(5).integers(0, 3, size=60)
    layer = fit_own_layer(head, with_targets(random_dataset(60, seed=1), noise))
    assert layer.epochs == 0
    assert not layer.change.any()
    few = fit_own_layer(head, of_a_teacher(head, random_dataset(9, seed=1)))
    assert not few.change.any()


def test_the_same_records_give_the_same_layer(head, random_dataset):
    site = of_a_teacher(head, random_dataset(60, seed=1))
    one, other = fit_own_layer(head, site), fit_own_layer(head, site)
    assert np.array_equal(one.change, other.change)


def test_a_persons_records_are_tried_on_together(head, random_dataset, monkeypatch):
    from fedllm.personal import own_layer

    data = random_dataset(40, seed=1)
    persons = np.arange(40) // 2
    site = with_targets(data, persons % 3, persons)
    folds = []
    right = own_layer._Training._folds

    def spied(self):
        for kept, left in right(self):
            folds.append((set(persons[kept]), set(persons[left])))
            yield kept, left

    monkeypatch.setattr(own_layer._Training, "_folds", spied)
    fit_own_layer(head, site)
    assert len(folds) == 5
    assert all(not kept & left and kept | left == set(persons) for kept, left in folds)
    assert sum(len(left) for _, left in folds) == 20


@pytest.mark.parametrize("method", ["lora", "rolora", "fedsvd", "core", "bitfit"])
def test_every_method_has_an_own_layer(tiny_model, random_dataset, method):
    model = tiny_model(lora={"method": method}, trained=False)
    adapter = adapter_of(model).start()
    adapter_of(model).place(adapter)
    train, held = (of_a_teacher(model, random_dataset(n, seed=n)) for n in (48, 20))
    found, layer = compare(model, adapter, train, held, "anne")
    assert np.array_equal(adapter_of(model).held(), adapter)
    assert layer.change.shape == (model.manifest.length,)
    assert (found.trained, found.held_out) == (48, 20)


def test_the_comparison_is_of_the_three_models(head, random_dataset):
    """The shared model was trained where labels are turned: the layer turns them back."""
    elsewhere = of_a_teacher(head, random_dataset(90, seed=4), turned=1)
    train, held = (of_a_teacher(head, random_dataset(n, seed=n)) for n in (90, 40))
    adapter = head.adapter() + fit_alone(head, elsewhere).change
    head.set_adapter(adapter)
    shared = unit_scores(head, held)[:, 1].mean()
    found, layer = compare(head, adapter, train, held, "anne")
    assert found.shared == shared
    assert found.own > found.shared
    assert found.own_over_shared.mean == pytest.approx(found.own - found.shared)
    assert found.own_over_alone.mean == pytest.approx(found.own - found.alone)
    assert found.shared_over_alone.mean == pytest.approx(found.shared - found.alone)
    assert found.over_the_better.mean == pytest.approx(found.own - max(found.alone, found.shared))
    head.set_adapter(adapter + layer.change)
    assert found.own == unit_scores(head, held)[:, 1].mean()
    together = benefit_of("run", "0" * 16, head, [found, found])
    assert (together.measure, together.better) == ("accuracy", "higher")
    assert together.over_the_better.mean == pytest.approx(found.over_the_better.mean)
    # Two sites know more than one.
    assert together.over_the_better.error == pytest.approx(found.over_the_better.error / np.sqrt(2))


def test_losses_are_better_when_they_are_lower(tiny_model, random_dataset):
    model = tiny_model("llama", "instruction", trained=False)
    adapter = adapter_of(model).start()
    train, held = (random_dataset(n, "instruction", seed=n) for n in (24, 10))
    adapter_of(model).place(adapter)
    found, _ = compare(model, adapter, train, held, "anne")
    assert found.own_over_shared.mean == pytest.approx(found.shared - found.own)
    together = benefit_of("run", "0" * 16, model, [found])
    assert (together.measure, together.better) == ("loss", "lower")


def test_a_record_at_which_the_model_breaks_off_is_counted_as_the_worst(tiny_model, random_dataset):
    model = tiny_model("llama", "instruction", trained=False)
    adapter = adapter_of(model).start()
    train, held = (random_dataset(n, "instruction", seed=n) for n in (4, 5))
    adapter_of(model).place(adapter)
    tokens = held.tokens.copy()
    tokens[held.offsets[4]] = 10**6
    good = unit_scores(model, held)[:4, 0]
    found, _ = compare(model, adapter, train, dataclasses.replace(held, tokens=tokens), "anne")
    assert found.held_out == 5
    assert found.shared == pytest.approx((good.sum() + LOSS.limit) / 5)


def test_an_interval_is_that_of_a_mean():
    found = Difference.of(np.array([0.0, 1.0, 0.0, 1.0]))
    assert found.mean == 0.5
    assert found.error == pytest.approx(np.std([0, 1, 0, 1], ddof=1) / 2)
    assert found.high - found.mean == pytest.approx(1.96 * found.error, rel=1e-3)
