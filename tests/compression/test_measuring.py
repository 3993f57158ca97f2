"""Bytes and operations by hand; that models take turns."""

from __future__ import annotations

import torch
from torch import nn

from fedllm.compression import measuring
from fedllm.compression.int8 import Int8Linear
from fedllm.compression.integers import to_integers
from fedllm.compression.measuring import latencies_ms, operations, tensor_bytes
from fedllm.compression.report.costs import weights


def test_a_tensor_that_two_parts_share_counts_once():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("codes", torch.zeros(7, dtype=torch.int8))
    assert tensor_bytes(model) == 160 + 7


def test_a_product_counts_two_operations_for_each_multiplication():
    layer = nn.Linear(8, 3)
    assert operations(lambda batch: layer(batch["x"]), {"x": torch.zeros(5, 8)}) == 2 * 5 * 8 * 3


def test_models_take_turns_and_the_first_time_does_not_count():
    asked = []
    models = {name: lambda batch, name=name: asked.append((name, int(batch["x"]))) for name in "ab"}
    batches = [{"x": torch.tensor(place)} for place in range(2)]
    found = latencies_ms(models, batches, 2)
    one = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert asked == one * 3
    assert found.keys() == {"a", "b"}


def test_what_interrupts_a_model_does_not_count(monkeypatch):
    spent = iter([9.0, 9.0, 9.0, 2.0, 7.0, 5.0, 6.0, 3.0, 5.0])
    now = [0.0]

    def answer(batch):
        now[0] += next(spent)

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    batches = [{"x": torch.tensor(place)} for place in range(3)]
    assert latencies_ms({"a": answer}, batches, 2) == {"a": 3000.0}


def test_products_of_integers_and_attention_count_too():
    """PyTorch's own counter knows neither on a processor, and leaves them out without a word."""
    layer = nn.Linear(8, 16)
    states = {"x": torch.randn(5, 8)}
    assert operations(lambda b: Int8Linear.of(layer)(b["x"]), states) == 2 * 5 * 8 * 16
    attended = {"x": torch.randn(2, 4, 10, 8)}
    attend = nn.functional.scaled_dot_product_attention
    for mask in (None, torch.zeros(2, 1, 10, 10)):
        counted = operations(lambda b, m=mask: attend(b["x"], b["x"], b["x"], m), attended)
        assert counted == 2 * (2 * 2 * 4 * 10 * 10 * 8)


def test_weights_that_are_zero_are_counted_once_and_scales_are_none():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[0].weight.data.fill_(1.0)[0] = 0
    model[1].weight = model[0].weight
    assert weights(model) == (40, 36)
    to_integers(model, "int8")
    assert weights(model) == (40, 36)

    class Packed(nn.Module):
        in_features = 8
        weight = torch.zeros(4, dtype=torch.uint8)

    # What is held in a way that is not known is not told wrongly.
    assert weights(nn.Sequential(model, Packed())) is None
