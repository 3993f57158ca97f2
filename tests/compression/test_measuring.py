"""Bytes and operations by hand; that models take turns."""

from __future__ import annotations

import torch
from torch import nn

from fedllm.compression.measuring import latencies_ms, operations, tensor_bytes


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
