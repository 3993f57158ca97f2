"""Which weights go, by hand; that zeros stay zero while the rest learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedllm.compression.linears import input_norms, linears, rows_by_output
from fedllm.compression.pruning import (
    keep_largest,
    keep_two_of_four,
    prune,
    zeros,
    zeros_kept,
)
from fedllm.errors import ConfigError


def layer_of(rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows, dtype=torch.float32)
    return layer


def test_the_smallest_of_each_row_go():
    scores = torch.tensor([[3.0, 1, 2, 4], [0, 0, 9, 8]])
    right = [[True, False, False, True], [False, False, True, True]]
    assert keep_largest(scores, 0.5).tolist() == right
    assert keep_largest(scores, 0.0).all()
    assert keep_largest(scores, 0.9).sum().item() == 2


def test_two_of_each_four_stay():
    scores = torch.tensor([[3.0, 1, 2, 4, 1, 1, 9, 8]])
    assert keep_two_of_four(scores).int().tolist() == [[1, 0, 0, 1, 0, 0, 1, 1]]
    with pytest.raises(ConfigError, match="6 inputs"):
        keep_two_of_four(torch.zeros(2, 6))


def test_what_goes_into_a_layer_decides_with_norms_and_weights_alone_without():
    rows = [[1.0, -2.0, 3.0, -4.0]]
    by_size, by_input = {"a": layer_of(rows)}, {"a": layer_of(rows)}
    prune(by_size, "share", 0.5)
    prune(by_input, "share", 0.5, {"a": torch.tensor([10.0, 1.0, 1.0, 0.1])})
    assert by_size["a"].weight.tolist() == [[0, 0, 3, -4]]
    assert by_input["a"].weight.tolist() == [[1, 0, 3, 0]]


def test_nothing_changes_if_one_layer_does_not_fit():
    layers = {"a": layer_of([[1.0, 2, 3, 4]]), "b": layer_of([[1.0, 2, 3]])}
    with pytest.raises(ConfigError, match="3 inputs"):
        prune(layers, "2:4")
    assert zeros(layers) == 0
    for share in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="cannot go"):
            prune(layers, "share", share)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_only_blocks_are_pruned_and_a_row_is_an_output(plain, texts, kind):
    model, architecture = plain(kind)
    layers = linears(model, architecture.lists)
    norms = input_norms(model, layers, texts(3))
    others = {
        name: p.clone()
        for name, p in model.named_parameters()
        if not any(p is layer.weight for layer in layers.values())
    }
    prune(layers, "share", 0.5, norms)
    assert zeros(layers) == pytest.approx(0.5)
    for layer in layers.values():
        rows = rows_by_output(layer)
        assert ((rows == 0).sum(dim=1) == rows.shape[1] // 2).all()
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in others.items())


def test_norms_are_those_of_all_tokens_that_went_in(plain, texts):
    model, architecture = plain("bert")
    layers = linears(model, architecture.lists)
    name = next(name for name in layers if name.endswith("0.attention.self.query"))
    batches = texts(4)
    found = input_norms(model, layers, batches)[name]
    states = torch.cat([model.embeddings(b["input_ids"])[0] for b in batches])
    torch.testing.assert_close(found, states.norm(dim=0))
    with pytest.raises(ConfigError, match="no texts"):
        input_norms(model, layers, [])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_zeros_stay_zero_while_the_rest_learns(optimizer):
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    layers = {"a": layer}
    prune(layers, "share", 0.5)
    gone, before = layer.weight == 0, layer.weight.clone()
    trained = optimizer(layer.parameters(), lr=0.1)
    with zeros_kept(layers, trained):
        for _ in range(3):
            layer(torch.randn(5, 8)).square().sum().backward()
            trained.step()
    assert (layer.weight[gone] == 0).all()
    assert (layer.weight[~gone] != before[~gone]).all()
    trained.step()
    assert (layer.weight[gone] != 0).any(), "afterwards it is an ordinary layer"
