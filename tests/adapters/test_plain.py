"""Plain LoRA, FFA and a head alone, as adapters with one space."""

from __future__ import annotations

import numpy as np
import pytest
from support.federation import LABELS, small_config
from support.tasks import load_model

from fedllm.adapters import adapter_of

KINDS = {
    "lora": {"rank": 2},
    "ffa": {"rank": 2, "freeze_a": True},
    "head": {"rank": 0},
}


@pytest.fixture(params=KINDS)
def model(request, tiny_checkpoint):
    return load_model(small_config(tiny_checkpoint("bert"), lora=KINDS[request.param]), LABELS)


def test_the_three_spaces_are_one(model):
    method = adapter_of(model)
    assert method.down == method.trained == method.up == model.manifest
    assert len(method.start()) == method.down.length


def test_the_way_up_is_linear_and_lengthens_nothing(model):
    method = adapter_of(model)
    one, two = (np.random.default_rng(i).normal(size=method.trained.length) for i in (1, 2))
    both = method.upward(2.0 * one - two)
    assert np.allclose(both, 2.0 * method.upward(one) - method.upward(two))
    assert np.linalg.norm(method.upward(one)) <= np.linalg.norm(one)
    assert np.abs(method.upward(one)).max() <= np.abs(one).max()


def test_the_next_adapter_is_the_optimisers_and_what_is_placed_comes_back(model):
    method = adapter_of(model)
    mean = np.full(method.up.length, 0.5)
    moved = method.next(method.start(), mean, lambda adapter, by: adapter + by.astype(np.float32))
    method.place(moved)
    assert np.array_equal(model.adapter(), moved)


def test_which_tensors_each_of_them_trains(tiny_checkpoint):
    names = {}
    for kind, lora in KINDS.items():
        model = load_model(small_config(tiny_checkpoint("bert"), lora=lora), LABELS)
        names[kind] = {segment.name for segment in adapter_of(model).trained.segments}
    assert names["head"] == {"head.weight", "head.bias"}
    assert {n for n in names["lora"] if "lora_A" not in n} == names["ffa"]
    assert any("lora_A" in n for n in names["lora"])
