"""The parts of a base model are compared with each other when it is loaded, not in a round."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.tasks import load_model

from fedllm.config import RunConfig, parse
from fedllm.errors import CheckpointError, ConfigError, FedllmError
from fedllm.models.checkpoints import checkpoint_folder, load_tokenizer, read_config


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    def make(kind):
        return shutil.copytree(tiny_checkpoint(kind), tmp_path / "model")

    return make


def load(folder, task="classification", **model):
    values = {
        "name": "tiny",
        "task": task,
        "model": {
            "path": str(folder),
            "max_length": 16,
            "head_start": "zero",
            "feature_center": "zero",
            **model,
        },
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2},
    }
    return load_model(parse(RunConfig, values, "test"), ("a", "b"))


def change(path, values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_token_without_an_embedding_is_refused(copy):
    folder = copy("llama")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    new = {**tokenizer["added_tokens"][0], "id": 16, "content": "<new>"}
    tokenizer["added_tokens"].append(new)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"no embedding for: the first is 16 \('<new>'\)"):
        load(folder)


def test_a_padding_token_without_an_embedding_is_refused(copy):
    folder = copy("gpt2")
    change(folder / "tokenizer_config.json", {"pad_token": "[PAD]"})
    with pytest.raises(CheckpointError, match=r"no embedding for: the first is 16 \('\[PAD\]'\)"):
        load(folder)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
def test_texts_longer_than_the_positions_are_refused(kind, tiny_checkpoint):
    longest = 159 if kind == "roberta" else 160
    model = load(tiny_checkpoint(kind), max_length=longest)
    ids = torch.full((1, longest), 5)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert model.module(batch).isfinite().all()
    with pytest.raises(ConfigError, match=rf"max_length = {longest + 1}: the model has {longest}"):
        load(tiny_checkpoint(kind), max_length=longest + 1)


def test_padding_that_counts_as_text_is_refused(copy):
    folder = copy("roberta")
    change(folder / "tokenizer_config.json", {"pad_token": "<unk>"})
    with pytest.raises(CheckpointError, match="padding token is 1 in the tokenizer and 0"):
        load(folder)


def test_nothing_but_what_was_checked_describes_the_model(copy, monkeypatch):
    """Also where a key that leads a library to another file is not known here."""
    folder = copy("llama")
    monkeypatch.setattr("fedllm.models.fit._STEERING", ())
    other = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 0.5}
    (folder / "config.4.0.0.json").write_text(json.dumps(other))
    change(folder / "config.json", {"configuration_files": ["config.4.0.0.json"]})
    config, *_ = read_config(folder)
    assert config.rms_norm_eps < 0.1


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("llama", {"pad_token_id": 16}, "pad_token_id = 16 is none of the 16 tokens"),
        ("llama", {"eos_token_id": [3, 99]}, "eos_token_id = 99"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": 2}, "that config.json does not know"),
        ("llama", {"num_hidden_layers": 4}, "lacks weights"),
        ("llama", {"vocab_size": 10**15}, "vocab_size"),
        ("gpt2", {"n_positions": 10**7}, "max_position_embeddings = 10000000"),
        ("llama", {"rms_norm_eps": -1e9}, "NaN or infinity"),
        ("llama", {"is_causal": False}, "is_causal = False"),
        ("bert", {"is_decoder": True}, "is_decoder = True"),
        ("bert", {"vocab_size": 12}, "cannot be loaded"),
        ("llama", {"transformers_weights": "x.safetensors"}, "transformers_weights"),
        ("llama", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "type 'dynamic'",
        ),
    ],
)
def test_a_configuration_of_another_model_is_refused(kind, values, words, copy):
    folder = copy(kind)
    change(folder / "config.json", values)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(folder)
    assert caught.value.remedy


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_quantised_checkpoints_get_their_own_remedy(method, copy):
    folder = copy("llama")
    change(folder / "config.json", {"quantization_config": {"quant_method": method, "bits": 4}})
    with pytest.raises(CheckpointError, match=rf"quantised \({method}\)(?s:.*)bfloat16"):
        load(folder)


def test_weights_in_whole_numbers_are_refused(copy):
    folder = copy("llama")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} is quantised \(I8\)"):
        load(folder)


def test_a_missing_tokenizer_is_not_made_up(copy):
    for kind in ("bert", "gpt2", "qwen2"):
        folder = copy(kind)
        (folder / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match="tokenizer"):
            load(folder)
        shutil.rmtree(folder)


DAMAGE = st.sampled_from(
    [None, [], {}, "", "x", -1, 0, 1, 3, 10**6, 10**18, 1e300, -0.5, True, ["x"], {"x": 1}, [[[]]]]
)


def mutated(draw, value, depth=0):
    """Replace one value inside a JSON value."""
    if isinstance(value, dict) and value and (depth < 1 or draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: mutated(draw, value[key], depth + 1)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutated(draw, value[place], depth + 1), *value[place + 1 :]]
    return draw(DAMAGE)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "config.json"),
        ("gpt2", "config.json"),
        ("bert", "config.json"),
        ("llama", "tokenizer.json"),
        ("bert", "tokenizer.json"),
        ("bert", "tokenizer_config.json"),
    ],
)
def test_no_damage_ends_in_another_error(kind, name, tiny_checkpoint, tmp_path_factory):
    folder = shutil.copytree(tiny_checkpoint(kind), tmp_path_factory.mktemp("damaged") / "model")
    whole = json.loads((folder / name).read_text())

    @examples(max_examples=20)
    @given(st.data())
    def run(data):
        (folder / name).write_text(json.dumps(mutated(data.draw, whole)))
        try:
            if name == "config.json":
                load(folder)
            else:
                load_tokenizer(checkpoint_folder(str(folder)), 16)
        except FedllmError as error:
            assert error.remedy

    run()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model_type": "llama", "rms_norm_eps": NaN}',
        b'{"model_type": ["llama"]}',
        b'{"model_type": {}}',
    ],
    ids=range(9),
)
def test_files_that_are_no_configuration(name, content, copy):
    folder = copy("llama")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(folder) in caught.value.message
    assert caught.value.remedy


@examples(max_examples=25)
@given(st.data())
def damage_weights(folder, whole, data):
    content = bytearray(whole)
    kind = data.draw(st.sampled_from(["flip", "cut", "length"]))
    if kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "length":
        content[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    else:
        content[data.draw(st.integers(0, 2000))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "model.safetensors").write_bytes(content)
    try:
        load(folder)
    except FedllmError as error:
        assert error.remedy


def test_no_damage_to_the_weights_ends_in_another_error(copy):
    folder = copy("llama")
    damage_weights(folder, (folder / "model.safetensors").read_bytes())
