"""Integers of 8 and 4 bits: what the product is, what is lost, what is one table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedllm.compression.int8 import Int8Embedding, Int8Linear, is_table, rounded
from fedllm.compression.integers import INTEGERS, quicken, to_integers
from fedllm.compression.weight_only import Int4Linear, Int8WeightsLinear
from fedllm.errors import ConfigError
from fedllm.models.quantized import QuantizedLinear


def test_rows_are_rounded_to_the_nearest_of_255_steps():
    values = torch.tensor([[1.0, -2.0, 0.004], [0.0, 0.0, 0.0]])
    codes, scales = rounded(values)
    assert codes.tolist() == [[64, -127, 0], [0, 0, 0]]
    torch.testing.assert_close(scales, torch.tensor([[2 / 127], [1.0]]))
    error = (codes.float() * scales - values).abs()
    assert bool((error <= scales / 2).all())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_the_product_of_integers_times_both_scales(bias, dtype):
    generator = torch.Generator().manual_seed(0)
    plain = nn.Linear(40, 24, bias=bias).to(dtype)
    states = torch.randn(3, 5, 40, generator=generator).to(dtype)
    layer = Int8Linear.of(plain)
    found = layer(states)
    codes, scales = rounded(states)
    right = (codes.double() @ layer.weight.double().T) * scales * layer.scales.T
    right = right + (plain.bias.double() if bias else 0)
    torch.testing.assert_close(
        found, right.to(dtype), rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6
    )
    lost = (found - plain(states)).float().norm() / plain(states).float().norm()
    assert lost < 0.02
    assert found.dtype == dtype


def test_each_token_has_a_scale_of_its_own():
    """A large token takes nothing from a small one, nor a large output's weights from others'."""
    torch.manual_seed(0)
    plain = nn.Linear(32, 8, bias=False)
    plain.weight.data[0] *= 1000
    states = torch.randn(2, 50, 32)
    states[1] *= 1e-4
    found, right = Int8Linear.of(plain)(states), plain(states)
    for place in range(2):
        for outputs in (slice(0, 1), slice(1, None)):
            wanted = right[place, :, outputs]
            assert (found[place, :, outputs] - wanted).norm() / wanted.norm() < 0.02


def test_a_table_gives_its_rows():
    plain = nn.Embedding(30, 16)
    found = Int8Embedding.of(plain)(torch.tensor([[3, 4], [3, 29]]))
    assert found.shape == (2, 2, 16)
    assert torch.equal(found[0, 0], found[1, 0])
    torch.testing.assert_close(found[1, 1], plain.weight[29], atol=0.02, rtol=0)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(("inputs", "bias"), [(96, True), (70, False)])
def test_weights_alone_are_rounded(rows, inputs, bias):
    """Of few rows and of many, which different operations multiply; of inputs of any number."""
    torch.manual_seed(0)
    plain, states = nn.Linear(inputs, 32, bias=bias), torch.randn(2, rows, inputs)
    states[0] *= 1000
    for layer, right in (
        (Int8WeightsLinear.of(plain), lambda one: one.weight.double() * one.scales),
        (Int4Linear.of(plain), lambda one: one.weights().double()),
    ):
        wanted = states.double() @ right(layer).T + (plain.bias if bias else 0)
        found = layer(states)
        # States of many rows stay as they are, of few they become bfloat16.
        few = isinstance(layer, Int8WeightsLinear) and rows == 1 and inputs == 96
        near = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        assert near.max() < (1e-2 if few else 1e-6)
        assert found.dtype == states.dtype
        assert found.shape == (2, rows, 32)
        lost = (found - plain(states)).norm(dim=-1) / plain(states).norm(dim=-1)
        assert lost.max() < (0.015 if isinstance(layer, Int8WeightsLinear) else 0.15)


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 96), (32, 70), (48, 32), (77, 64)])
def test_4_bits_laid_out_for_a_processor_are_the_same_numbers(outputs, inputs):
    torch.manual_seed(0)
    layer = Int4Linear.of(nn.Linear(inputs, outputs))
    states = torch.randn(3, 9, inputs)
    before = layer(states)
    layer.quicken()
    layer.quicken()
    after = layer(states)
    assert (after - before).norm() / before.norm() < 0.01
    assert (layer.codes.dtype == torch.uint8) == (outputs % 16 == 0)


def test_4_bits_are_those_of_a_runs_frozen_base():
    torch.manual_seed(0)
    plain = nn.Linear(40, 24)
    assert torch.equal(Int4Linear.of(plain).weights(), QuantizedLinear(plain, 4).weight)


@pytest.mark.parametrize("held", INTEGERS)
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "gemma3_text"])
def test_a_model_answers_nearly_as_before_and_its_tied_table_is_one(plain, texts, kind, held):
    model, _ = plain(kind)
    batch = texts(1, 12)[0]
    with torch.no_grad():
        before = model(**batch)[0]
        assert to_integers(model, held) > 0
        after = model(**batch)[0]
        quicken(model)
        quick = model(**batch)[0]
    for found in (after, quick):
        near = torch.cosine_similarity(before, found, dim=-1).min()
        assert near > (0.7 if held == "int4" else 0.995)
    assert not torch.equal(before, after)
    left = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Embedding)]
    assert left == []
    if kind in ("gpt2", "gemma3_text"):
        table = model.get_input_embeddings()
        assert table.weight.data_ptr() == model.lm_head.weight.data_ptr()
        assert table.weight.dtype == torch.int8
    with pytest.raises(ConfigError, match="quantised already"):
        to_integers(model, held)


def test_a_table_that_multiplies_its_rows_goes_on_to(plain):
    model, _ = plain("gemma3_text")
    table, ids = model.get_input_embeddings(), torch.tensor([[3, 4, 5]])
    right = table(ids)
    assert type(table) is not nn.Embedding
    found = Int8Embedding.of(table)(ids)
    torch.testing.assert_close(found, right, atol=0.01 * float(right.abs().max()), rtol=0)


class Shifted(nn.Embedding):
    """Has a factor, and does something else."""

    embed_scale = 2.0

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale + 1


class Placed(nn.Embedding):
    """Asks for more than numbers of rows."""

    embed_scale = 2.0

    def forward(self, ids, places):
        return super().forward(ids + places)


def test_a_table_of_a_class_of_its_own_stays_where_it_does_something_else():
    for kind in (Shifted, Placed):
        table = kind(8, 4)
        assert not is_table(table)
        model = nn.Sequential(table, nn.Linear(4, 4))
        assert to_integers(model, "int8") == 1
        assert model[0] is table


def test_a_model_without_such_parts_is_refused():
    with pytest.raises(ConfigError, match="no plain linear layers"):
        to_integers(nn.Sequential(nn.LayerNorm(3)), "int8")
