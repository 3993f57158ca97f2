"""A model that is moved after peft wrapped it may train adapters that it does not compute with.

What an optimiser, hooks or a flat vector hold are then tensors of before: losses look as usual, and
nothing is learned (Opacus's issue 820). Both ways, with the libraries alone and in a site.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fedllm.errors import TrainingError
from fedllm.mechanisms import LocalSettings
from fedllm.privacy.dpsgd import per_sample_hooks
from fedllm.randomness import RandomStream
from fedllm.training.local import train_locally
from fedllm.training.made_up import MadeUpTraining
from fedllm.training.objectives import record_losses

STEP = LocalSettings(1, 1.0, 4.0, 2, "sgd", 1.0, 1.0, clipping_norm=0.5, noise_multiplier=0.0)


@contextmanager
def new_tensors():
    """Let a conversion put new tensors into a module, as between some devices it always does."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def move(module):
    """Put new tensors of the same numbers into a module, as moving it does."""
    with new_tensors():
        return module.to(torch.float64).to(torch.float32)


def wrap(base):
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    return adapted, [p for p in adapted.parameters() if p.requires_grad]


@pytest.mark.parametrize("moved", ["first", "last"])
def test_the_libraries_alone_train_in_silence_what_is_not_there(moved, tiny_checkpoint):
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama"))
    if moved == "first":
        adapted, trained = wrap(move(base))
    else:
        adapted, trained = wrap(base)
        adapted = move(adapted)
    optimizer = torch.optim.SGD(trained, lr=1.0)
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    before = [p.detach().clone() for p in adapted.parameters()]
    with per_sample_hooks(adapted):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        found = [p.grad_sample for p in adapted.parameters() if p.requires_grad]
    # Hooks saw a gradient for each record in any case.
    assert all(isinstance(gradient, torch.Tensor) for gradient in found)
    optimizer.step()
    same = all(map(torch.equal, before, adapted.parameters()))
    assert np.isfinite(float(loss.detach()))
    assert same == (moved == "last")


METHODS = [
    pytest.param({"last_layers": 1}, id="adapter"),
    pytest.param({"last_layers": 1, "method": "bitfit"}, id="own tensors"),
    pytest.param({"rank": 0}, id="head"),
]


@pytest.mark.parametrize("lora", METHODS)
@pytest.mark.parametrize("how", [move, deepcopy], ids=["moved", "copied"])
def test_a_site_refuses_such_a_model_before_a_record_is_touched(lora, how, tiny_model):
    model = tiny_model(lora=lora)
    MadeUpTraining().require(model, 16)
    model.module = how(model.module)
    with pytest.raises(TrainingError, match=r"got no gradient for each record|did not reach"):
        MadeUpTraining().require(model, 16)


@pytest.mark.parametrize("lora", METHODS)
def test_what_a_site_trains_is_what_its_model_computes_with(lora, tiny_model, random_dataset):
    model, data = tiny_model(lora=lora), random_dataset(4)
    batch = data.batch(np.arange(4))
    streams = RandomStream.seeded(0, "sampling"), RandomStream.seeded(0, "noise")
    before = record_losses(model, batch)
    update = train_locally(model, data, STEP, *streams).update
    model.set_adapter(model.adapter() + update)
    assert not torch.equal(record_losses(model, batch), before)
    held = dict(model.module.named_parameters())
    for segment, parameter in zip(model.manifest.segments, model.trained, strict=True):
        assert held[segment.name] is parameter
