"""Whether training can work is told by public things alone."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from fedllm.errors import TrainingError
from fedllm.training.made_up import MadeUpTraining, made_up_records

CASES = [
    ("bert", "classification"),
    ("gpt2", "causal"),
    ("llama", "instruction"),
    ("bert", "token_classification"),
]


@pytest.mark.parametrize(("kind", "task"), CASES)
@pytest.mark.parametrize("lora", [{}, {"last_layers": None}, {"freeze_a": True}], ids=str)
def test_a_model_that_trains_is_let_through_and_left_as_it_is(kind, task, lora, tiny_model):
    for trained in (False, True):
        model = tiny_model(kind, task, lora=lora, trained=trained)
        before = model.adapter()
        check = MadeUpTraining()
        for _ in range(2):
            check.require(model, 32)
        np.testing.assert_array_equal(model.adapter(), before)


def test_a_head_alone_is_let_through(tiny_model):
    MadeUpTraining().require(tiny_model(lora={"rank": 0}), 16)


def test_labels_may_make_the_gradients_of_a_batch_cancel(tiny_model):
    """A head of zeros on two labels: each record's gradient is there, their sum need not be."""
    model = tiny_model(lora={"rank": 0}, trained=False)
    MadeUpTraining().require(model, 1)


def test_a_disconnected_adapter_is_refused(tiny_model):
    model = tiny_model()
    layer = next(m for m in model.module.modules() if hasattr(m, "lora_A"))
    layer.scaling["default"] = 0.0
    with pytest.raises(TrainingError, match=r"did not reach .*lora_A"):
        MadeUpTraining().require(model, 16)


def test_a_model_that_has_diverged_is_refused(tiny_model):
    model = tiny_model()
    model.set_adapter(np.full(model.manifest.length, 3e38, dtype=np.float32))
    with pytest.raises(TrainingError, match="no loss that is a number"):
        MadeUpTraining().require(model, 16)


def test_what_was_let_through_is_not_tried_again_and_anything_else_is(tiny_model, monkeypatch):
    """Sites that share a process are sent the same adapter each round."""
    model, check, tried = tiny_model(), MadeUpTraining(), []
    step = MadeUpTraining._step
    monkeypatch.setattr(
        MadeUpTraining, "_step", lambda self, *asked: tried.append(asked) or step(self, *asked)
    )
    for _ in range(3):
        check.require(model, 16)
    assert len(tried) == 1
    start = model.adapter()
    model.set_adapter(np.append(start[:-1], start[-1] + 1))
    check.require(model, 16)
    model.set_adapter(start)
    check.require(model, 17)
    check.require(model, 16, activation_checkpointing=True)
    check.require(tiny_model(), 16)
    assert len(tried) == 5
    check.require(model, 16)
    assert len(tried) == 5
    model.set_adapter(np.full(model.manifest.length, 3e38, dtype=np.float32))
    for _ in range(2):
        with pytest.raises(TrainingError, match="no loss that is a number"):
            check.require(model, 16)
    assert len(tried) == 7


def test_a_model_that_nobody_else_holds_is_freed(tiny_model):
    """A site goes on to a run of another base model, with no room for both."""
    model, check = tiny_model(), MadeUpTraining()
    check.require(model, 16)
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


def test_room_is_tried_each_time(tiny_model, monkeypatch):
    model, check, tried = tiny_model(), MadeUpTraining(), []
    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    monkeypatch.setattr(type(model), "moved", lambda self, batch: batch)
    monkeypatch.setattr(MadeUpTraining, "_longest", lambda self, *asked: tried.append(asked))
    for _ in range(3):
        check.require(model, 16, rows_at_once=2)
    assert len(tried) == 3


def test_what_refers_to_a_start_is_always_tried(tiny_model, monkeypatch):
    """The start comes with each order, and is not among what the model holds."""
    model, check, tried = tiny_model(), MadeUpTraining(), []
    model.sent_reference = True
    step = MadeUpTraining._step
    monkeypatch.setattr(
        MadeUpTraining, "_step", lambda self, *asked: tried.append(asked) or step(self, *asked)
    )
    for _ in range(2):
        check.require(model, 16)
    assert len(tried) == 2


def test_what_breaks_off_is_told_and_the_next_step_is_clean(tiny_model, monkeypatch):
    model, check = tiny_model(), MadeUpTraining()
    with monkeypatch.context() as patch:
        patch.setattr(
            "fedllm.training.made_up.record_losses", lambda *_: (_ for _ in ()).throw(KeyError())
        )
        with pytest.raises(TrainingError, match="broke off"):
            check.require(model, 16)
    check.require(model, 16)


def test_made_up_records_are_the_same_everywhere(tiny_model):
    first, second = (made_up_records(tiny_model(), 16) for _ in range(2))
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.targets, second.targets)
