"""What is found of a model before its weights are read, and which models are refused, and why."""

import json
import shutil

import pytest
import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from safetensors.torch import load_file, save_file
from support.tiny_models import ALL, DECODERS, FULL, save_model, save_tiny, save_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel

from fedllm.config import RunConfig, parse
from fedllm.errors import CheckpointError, ConfigError
from fedllm.models.architecture import find_architecture, linear_names, query_value
from fedllm.models.checkpoints import read_config
from fedllm.models.shared import load_shared_model

SIZE = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def config(folder, task="classification", precision="float32", **lora):
    values = {
        "name": "tiny",
        "task": task,
        "model": {
            "path": str(folder),
            "max_length": 16,
            "precision": precision,
            "head_start": "zero",
            "feature_center": "zero",
        },
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2, **lora},
    }
    return parse(RunConfig, values, "test")


def load(folder, task="classification", **others):
    labels = ("one", "two") if task == "classification" else ()
    return load_shared_model(config(folder, task, **others), labels)


def change(folder, values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", ALL)
def test_each_architecture_is_found(kind, tmp_path):
    expected = ALL[kind]
    _, found = read_config(save_tiny(kind, tmp_path))
    assert found.layers == expected.layers
    assert set(found.query_value) == set(expected.targets)
    assert found.causal == (kind in DECODERS)
    counted = {"roberta": 0, "xlm-roberta": 0, "camembert": 0}.get(kind)
    assert found.counted_from == counted
    assert found.positions == (None if kind == "bloom" else 64 if counted is None else 63)


@pytest.mark.parametrize("kind", sorted(ALL.keys() & PEFT_TARGETS.keys()))
def test_projections_are_those_of_pefts_own_table(kind):
    assert set(ALL[kind].targets) == set(PEFT_TARGETS[kind])


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("no type", ["a.q_proj", "a.k_proj", "a.v_proj", "m.up"], ("q_proj", "v_proj")),
        ("no type", ["a.Wq", "a.Wk", "a.Wv"], ("Wq", "Wv")),
        ("no type", ["a.qkv", "m.dense"], ("qkv",)),
        ("no type", ["dense", "q"], ()),
        ("llama", ["a.qkv_proj", "m.up"], ("qkv_proj",)),
        ("phi", ["a.q_proj", "a.v_proj", "m.fc1", "m.fc2"], ("q_proj", "v_proj")),
        ("deberta", ["a.in_proj"], ("in_proj",)),
    ],
)
def test_a_table_that_names_other_layers_gives_way_to_what_is_there(kind, names, expected):
    layers = nn.Module()
    for name in names:
        owner, _, leaf = name.rpartition(".")
        if owner and not hasattr(layers, owner):
            layers.add_module(owner, nn.Module())
        layers.get_submodule(owner).add_module(leaf, nn.Linear(2, 2))
    assert query_value(kind, linear_names(layers)) == expected


@pytest.mark.parametrize("named", ["deepgemm", "sonicmoe", "somebody/kernels"])
def test_no_configuration_chooses_the_code_of_experts(named, tmp_path):
    folder = save_tiny("mixtral", tmp_path)
    change(folder, {"experts_implementation": named, "attn_implementation": named})
    found = load(folder).module.backbone.config
    assert (found._experts_implementation, found._attn_implementation) == ("eager", "sdpa")


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("albert", {"embedding_size": 8}, "layers of 'albert' models cannot be found"),
        ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}, "a state that they carry"),
        ("mamba", {"state_size": 4}, "a state that they carry"),
        ("xlm", {"emb_dim": 16, "n_layers": 3, "n_heads": 4}, "cannot be found"),
        ("qwen3", {"layer_types": [FULL, "linear_attention", FULL]}, "'linear_attention'"),
        ("llama", {"expert_capacity": 4}, "only so many tokens of a batch"),
        ("big_bird", {}, "attention to blocks"),
    ],
)
def test_what_cannot_be_done_right_is_refused_before_weights_are_read(
    kind, values, words, tmp_path
):
    save_tokenizer(tmp_path)
    AutoConfig.for_model(kind, **SIZE | values, pad_token_id=0).save_pretrained(tmp_path)
    # Large enough for what the configuration asks for, and not its weights.
    save_file({str(i): torch.zeros(100_000) for i in range(9)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert words in caught.value.message
    assert "docs/models.md" in caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("vit", "type 'vit' are not supported"),
        ("gemma3", "parts of their own (text_config, vision_config)"),
        ("gpt2", "is_encoder_decoder = True"),
        ("speech_to_text", "type 'speech_to_text' are not supported"),
        ("no such type", "type 'no such type' are not supported"),
    ],
)
def test_models_of_other_uses_are_refused(kind, words, tmp_path):
    save_tokenizer(tmp_path)
    save_file({"x": torch.zeros(1_000_000)}, tmp_path / "model.safetensors")
    values = {"model_type": kind} | ({"is_encoder_decoder": True} if kind == "gpt2" else {})
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert words in caught.value.message


class Normalised(nn.Module):
    """Makes one linear layer of each block normalise over the batch."""

    def __init__(self, block, *args, **kwargs):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


def test_batch_normalisation_is_refused(tmp_path, monkeypatch):
    from transformers.models.bert import modeling_bert

    monkeypatch.setattr(modeling_bert, "BertIntermediate", Normalised)
    save_tiny_config = AutoConfig.for_model("bert", **SIZE)
    with pytest.raises(CheckpointError, match=r"batch normalisation \(encoder\.layer\.0\."):
        find_architecture(tmp_path / "config.json", save_tiny_config, 10**6)


def test_layers_that_share_a_weight_are_refused(tmp_path, monkeypatch):
    from transformers.models.bert import modeling_bert

    made, shared = modeling_bert.BertIntermediate.__init__, []

    def tied(self, config):
        made(self, config)
        shared.append(self.dense)
        self.dense = shared[0]

    monkeypatch.setattr(modeling_bert.BertIntermediate, "__init__", tied)
    with pytest.raises(CheckpointError, match="share their weights"):
        find_architecture(tmp_path / "config.json", AutoConfig.for_model("bert", **SIZE), 10**6)


def test_an_adapter_is_no_wider_than_its_layer(tmp_path):
    folder = save_tiny("llama", tmp_path)
    # Two groups of four: the narrowest of query and value.
    assert load(folder, rank=8).peft is not None
    with pytest.raises(ConfigError, match=r"lora\.rank = 9 is more than the width 8 of layers\.0"):
        load(folder, rank=9)


def test_a_model_that_keeps_the_range_of_what_it_saw_is_refused(tmp_path):
    """I-BERT's quantiser: one word can change what is computed of all later texts."""
    save_model("ibert", tmp_path, SIZE | {"vocab_size": save_tokenizer(tmp_path)}, encoder=True)
    with pytest.raises(CheckpointError, match="writes on itself while it runs"):
        load(tmp_path, rank=0)


def test_a_model_without_query_and_value_trains_its_head_alone(tmp_path, monkeypatch):
    save_model("bert", tmp_path, SIZE | {"vocab_size": save_tokenizer(tmp_path)}, encoder=True)
    monkeypatch.setattr("fedllm.models.architecture.query_value", lambda *_: ())
    with pytest.raises(ConfigError, match="looks like query or value") as caught:
        load(tmp_path)
    assert "choose from dense, key, query, value" in caught.value.remedy
    assert load(tmp_path, rank=0).peft is None


def test_a_model_that_mixes_padding_into_texts_is_refused(tmp_path):
    """FNet's Fourier transform goes over all places, padding among them."""
    save_model("fnet", tmp_path, SIZE | {"vocab_size": save_tokenizer(tmp_path)}, encoder=True)
    with pytest.raises(CheckpointError, match="depend on its padding"):
        load(tmp_path, rank=0)


def test_a_tokenizer_pads_where_the_model_counts_from_whatever_it_says(tmp_path):
    from fedllm.models.checkpoints import load_tokenizer

    features = []
    for side in ("left", "right"):
        folder = save_tiny("gpt2", tmp_path / side)
        save_tokenizer(folder, padding_side=side)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["padding_side"] == side
        assert load_tokenizer(folder)(["card fee", "card"], padding=True)["attention_mask"] == [
            [1, 1],
            [1, 0],
        ]
        values = config(folder)
        section = values.model.model_copy(update={"head_start": "label_names"})
        model = load_shared_model(
            values.model_copy(update={"model": section}), ("card", "send cash my fee")
        )
        features.append(model.module.head.weight.detach())
    assert torch.equal(*features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("kind", ["gemma3_text", "modernbert"])
def test_weights_of_any_precision_and_in_any_number_of_files_are_read(kind, files, dtype, tmp_path):
    whole = save_tiny(kind, tmp_path / "whole")
    tensors = {k: v.to(dtype) for k, v in load_file(whole / "model.safetensors").items()}
    folder = shutil.copytree(whole, tmp_path / "model")
    write(folder, tensors, files)
    found = load(folder)
    model = AutoModel.from_pretrained(whole, dtype=torch.float32)
    exact = dict(model.named_parameters())
    seen = 0
    for name, parameter in found.module.backbone.named_parameters():
        if not parameter.requires_grad:
            assert parameter.dtype == torch.float32
            expected = exact[name.replace(".base_layer", "")].to(dtype).float()
            assert torch.equal(parameter, expected), name
            seen += 1
    assert seen == len(exact)
    rough = config(folder)
    rough = rough.model_copy(
        update={"model": rough.model.model_copy(update={"precision": "bfloat16"})}
    )
    half = load_shared_model(rough, ("one", "two"))
    for name, parameter in half.module.backbone.named_parameters():
        if not parameter.requires_grad:
            expected = exact[name.replace(".base_layer", "")].to(dtype).to(torch.bfloat16)
            assert torch.equal(parameter, expected), name
    batch = {"input_ids": torch.tensor([[4, 5, 6]]), "attention_mask": torch.ones(1, 3).long()}
    one, other = (m.module.stack.last_states(batch).float().detach() for m in (found, half))
    assert not torch.equal(one, other)
    assert float((one - other).norm()) < 0.1 * float(one.norm())


def write(folder, tensors, files):
    """Write weights, in one file or in several with an index."""
    if files == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    (folder / "model.safetensors").unlink()
    places = {}
    for number in range(files):
        name = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::files]}
        save_file(part, folder / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_missing_piece_of_the_weights_is_named(tmp_path):
    folder = save_tiny("llama", tmp_path / "model")
    write(folder, load_file(folder / "model.safetensors"), 3)
    assert load(folder, "causal").peft is not None
    piece = folder / "model-00002-of-00003.safetensors"
    content = piece.read_bytes()
    piece.unlink()
    with pytest.raises(CheckpointError, match=r"names 'model-00002-of-00003\.safetensors', which"):
        load(folder, "causal")
    # There, but without one of its tensors, and cut short.
    tensors = {k: v for k, v in load_file_of(content, tmp_path).items() if "embed" not in k}
    save_file(dict(list(tensors.items())[1:]), piece, {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks weights"):
        load(folder, "causal")
    piece.write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is damaged"):
        load(folder, "causal")


def load_file_of(content, folder):
    (folder / "piece.safetensors").write_bytes(content)
    return load_file(folder / "piece.safetensors")
