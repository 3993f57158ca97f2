"""What is left computes what masking would, is saved, and is loaded as an ordinary checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedllm.compression.removing import (
    feed_forwards,
    keep_blocks,
    remove_blocks,
    remove_channels,
    remove_heads,
)
from fedllm.errors import ConfigError

KINDS = ["bert", "llama", "qwen2"]


def answer(model, batch):
    with torch.no_grad():
        found = model(**batch)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def loaded_again(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("nothing", ["is made of it", "goes in"])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_do_nothing_go_first_and_nothing_else_changes(
    plain, texts, tmp_path, kind, nothing
):
    model, architecture = plain(kind)
    names = architecture.layer_names(model.base_model)
    _, width, parts = feed_forwards(model, names)
    # A quarter of the channels, another one in each block.
    for place, part in enumerate(parts):
        if nothing == "is made of it":
            part.out.weight.data[:, place::4] = 0
            continue
        part.out.weight.data[:, place::4] *= 100
        for layer in part.into:
            layer.weight.data[place::4] = 0
            if layer.bias is not None:
                layer.bias.data[place::4] = 0
    before = answer(model, texts(1)[0])
    small = sum(p.numel() for p in model.parameters())
    assert remove_channels(model, names, 0.25, texts(3)) == width - width // 4
    torch.testing.assert_close(answer(model, texts(1)[0]), before)
    again = loaded_again(model, tmp_path)
    torch.testing.assert_close(answer(again, texts(1)[0]), before)
    assert sum(p.numel() for p in again.parameters()) < small


@pytest.mark.parametrize(
    ("kind", "nothing"), [("llama", "is made of it"), ("qwen3", "is made of it"), ("llama", "in")]
)
def test_groups_of_heads_that_do_nothing_go_first(texts, tmp_path, kind, nothing):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        vocab_size=60,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=4,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    names = [f"layers.{place}" for place in range(2)]
    for place, name in enumerate(names):
        # Two heads of four channels share a key: group 1 in the first block, 2 in the second.
        own = model.base_model.get_submodule(name).self_attn
        going = own.o_proj.weight.data[:, 8 * (place + 1) : 8 * (place + 2)]
        if nothing == "in":
            going *= 100
            own.v_proj.weight.data[4 * (place + 1) : 4 * (place + 2)] = 0
        else:
            going.zero_()
    before = answer(model, texts(1)[0])
    assert remove_heads(model, names, 0.34, texts(3)) == 4
    assert model.config.num_key_value_heads == 2
    torch.testing.assert_close(answer(model, texts(1)[0]), before)
    torch.testing.assert_close(answer(loaded_again(model, tmp_path), texts(1)[0]), before)
    cached = model.generate(**texts(1)[0], max_new_tokens=4, do_sample=False)
    plainly = model.generate(**texts(1)[0], max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, plainly)


def test_a_number_of_heads_that_the_architecture_refuses_changes_nothing(texts):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=4,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ConfigError, match="does not allow 3 heads"):
        remove_heads(model, ["layers.0"], 0.25, texts(1))
    assert model.config.num_attention_heads == 4
    assert model.model.layers[0].self_attn.q_proj.out_features == 16


def test_heads_whose_width_no_configuration_tells_are_refused(plain, texts):
    model, architecture = plain("bert")
    names = architecture.layer_names(model.base_model)
    with pytest.raises(ConfigError, match="head_dim"):
        remove_heads(model, names, 0.5, texts(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_turns_nothing_goes_first(plain, texts, tmp_path, kind):
    model, architecture = plain(kind)
    still = model.base_model.get_submodule(architecture.layers)[1]
    if kind == "bert":
        for norm in (still.attention.output.LayerNorm, still.output.LayerNorm):
            assert isinstance(norm, nn.LayerNorm)
        pytest.skip("a block that ends in a norm turns states whatever its weights are")
    for part in still.modules():
        if isinstance(part, nn.Linear):
            part.weight.data.zero_()
            if part.bias is not None:
                part.bias.data.zero_()
    before = answer(model, texts(1)[0])
    assert remove_blocks(model, architecture.lists, 0.34, texts(2)) == (0, 2)
    torch.testing.assert_close(answer(model, texts(1)[0]), before)
    again = loaded_again(model, tmp_path)
    torch.testing.assert_close(answer(again, texts(1)[0]), before)
    cached = again.generate(**texts(1)[0], max_new_tokens=4, do_sample=False)
    plainly = again.generate(**texts(1)[0], max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, plainly)


def test_each_block_keeps_its_own_kind_of_attention(texts, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = AutoConfig.for_model(
        "gemma3_text",
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=3,
        layer_types=kinds,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    keep_blocks(model, "layers", (1, 2))
    assert list(model.config.layer_types) == kinds[1:]
    before = answer(model, texts(1)[0])
    torch.testing.assert_close(answer(loaded_again(model, tmp_path), texts(1)[0]), before)


def test_what_cannot_go_is_refused(plain, texts):
    model, architecture = plain("gpt2")
    names = architecture.layer_names(model.base_model)
    with pytest.raises(ConfigError, match=r"no feed-forward layer|has none of"):
        remove_channels(model, names, 0.5, texts(1))
    model, architecture = plain("llama")
    for share in (-0.5, 1.0):
        with pytest.raises(ConfigError, match="cannot go"):
            remove_blocks(model, architecture.lists, share, texts(1))
    with pytest.raises(ConfigError, match="no texts"):
        remove_blocks(model, architecture.lists, 0.5, [])
