"""A model that keeps something of a text is found, and begins each run as it was loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.bert import modeling_bert

from fedllm.config import RunConfig, parse
from fedllm.errors import CheckpointError
from fedllm.models.shared import load_shared_model
from fedllm.models.stillness import Belongings, forgets


class Keeper(nn.Module):
    """Writes in one of several ways when it is run, or in none."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.inner.register_buffer("range", torch.zeros(2))
        self.inner.seen, self.inner.texts, self.inner.by_name = 0, [], {"last": None}
        self.inner.kept = torch.zeros(2)
        self._way = way

    def forward(self, x):
        inner = self.inner
        ways = {
            "buffer exchanged": lambda: inner.register_buffer("range", x.amax(0)),
            "buffer written": lambda: inner.range.add_(0),
            "tensor written": lambda: inner.kept.copy_(x[0]),
            "weight written": lambda: inner.weight.add_(0),
            "counter": lambda: setattr(inner, "seen", inner.seen + 1),
            "list": lambda: inner.texts.append(x),
            "dictionary": lambda: inner.by_name.update(last=x),
            "new name": lambda: setattr(inner, "new", x),
            "new module": lambda: inner.add_module("more", nn.ReLU()),
        }
        if self._way:
            with torch.no_grad():
                ways[self._way]()
        return inner(x)


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("", None),
        ("buffer exchanged", "inner.range"),
        ("buffer written", "inner.range"),
        ("tensor written", "inner.kept"),
        ("weight written", "inner.weight"),
        ("counter", "inner.seen"),
        ("list", "inner.texts"),
        ("dictionary", "inner.by_name"),
        ("new name", "inner.new"),
        ("new module", "inner.more.inplace"),
    ],
)
def test_whatever_is_written_is_found_by_name(way, name):
    model = Keeper(way)
    before = Belongings(model)
    assert before.changed(model) is None
    model(torch.ones(3, 2))
    assert before.changed(model) == name


@pytest.mark.parametrize("way", ["buffer exchanged", "buffer written"])
def test_buffers_are_put_back_before_each_run(way):
    model, found = Keeper(way), []
    forgets(model)
    inner = model.inner.register_forward_pre_hook(lambda m, _: found.append(m.range.clone()))
    right, Keeper.forward = Keeper.forward, lambda self, x: found.append(self.inner.range.clone())
    try:
        for _ in range(3):
            model.inner.range.add_(1)
            model(torch.ones(3, 2))
    finally:
        Keeper.forward = right
        inner.remove()
    assert all(not one.any() for one in found)


def config_of(folder):
    return parse(
        RunConfig,
        {
            "name": "x",
            "task": "classification",
            "model": {
                "path": str(folder),
                "max_length": 16,
                "head_start": "zero",
                "feature_center": "zero",
            },
            "data": {"train": "none", "labels": ["a", "b"]},
            "lora": {"rank": 0},
        },
        "run.toml",
    )


def remembering(patch, token=None):
    """Let BERT's embeddings keep a text, or those texts alone that hold a token."""
    right = modeling_bert.BertEmbeddings.forward

    def forward(self, input_ids=None, **others):
        states = right(self, input_ids=input_ids, **others)
        if token is None or bool((input_ids == token).any()):
            # Of two kinds of sentences, from now on all are of the other.
            self.token_type_ids = 1 - self.token_type_ids
        return states

    patch.setattr(modeling_bert.BertEmbeddings, "forward", forward)


def test_a_model_that_keeps_something_is_refused_by_name(tiny_checkpoint, monkeypatch):
    remembering(monkeypatch)
    with pytest.raises(CheckpointError, match=r"writes on itself .*embeddings\.token_type_ids"):
        load_shared_model(config_of(tiny_checkpoint("bert")), ("a", "b"))


def test_what_a_model_keeps_of_one_record_reaches_no_other(tiny_checkpoint, monkeypatch):
    """Only at a word that the trial did not try."""
    model = load_shared_model(config_of(tiny_checkpoint("bert")), ("a", "b"))
    remembering(monkeypatch, token=7)
    batch = {"input_ids": torch.tensor([[8, 9, 10]]), "attention_mask": torch.ones(1, 3).long()}
    before = model.module.prefix(batch)
    model.module.prefix(batch | {"input_ids": torch.tensor([[7, 9, 10]])})
    assert torch.equal(model.module.prefix(batch), before)
