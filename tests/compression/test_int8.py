"""Integers of 8 bits: what the product is, what is lost, what is one table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedllm.compression.int8 import Int8Embedding, Int8Linear, rounded, to_int8
from fedllm.errors import ConfigError


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


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_a_model_answers_nearly_as_before_and_its_tied_table_is_one(plain, texts, kind):
    model, _ = plain(kind)
    batch = texts(1, 12)[0]
    with torch.no_grad():
        before = model(**batch)[0]
        assert to_int8(model) > 0
        after = model(**batch)[0]
    assert torch.cosine_similarity(before, after, dim=-1).min() > 0.995
    assert not torch.equal(before, after)
    left = [type(p) for p in model.modules() if type(p) in (nn.Linear, nn.Embedding)]
    assert left == []
    if kind == "gpt2":
        table = model.get_input_embeddings()
        assert table.weight.data_ptr() == model.lm_head.weight.data_ptr()
    with pytest.raises(ConfigError, match="quantised already"):
        to_int8(model)


def test_a_model_without_such_parts_is_refused():
    with pytest.raises(ConfigError, match="no plain linear layers"):
        to_int8(nn.Sequential(nn.LayerNorm(3)))
