"""What lies in a base model's folder: everything that is read counts, nothing else is read."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fedllm.errors import CheckpointError
from fedllm.models.checkpoints import checkpoint_folder, fingerprint, load_tokenizer, read_config
from fedllm.models.contents import INDEX, fingerprints, state


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")


def sharded(folder):
    """Cut the weights into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    write_index(folder, places)
    return places


def write_index(folder, places):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "added_tokens.json",
        "special_tokens_map.json",
        "generation_config.json",
        "tokenizer.model",
        "spiece.model",
        "tekken.json",
        "model.safetensors.index.json",
        "other.safetensors",
        "1_Pooling/config.json",
        "words.of-a-tokenizer-to-come",
        "LICENSE.tokenizer.1.0.json",
        "NOTICE.json",
        "use_policy.safetensors",
        "LICENSES",
        "README.md\n",
    ],
)
def test_every_file_that_may_be_read_counts(folder, name):
    (folder / name).unlink(missing_ok=True)
    seen = {fingerprint(folder)}
    (folder / name).parent.mkdir(exist_ok=True)
    for content in ("{}", "{ }"):
        (folder / name).write_text(content)
        seen.add(fingerprint(folder))
    (folder / name).rename(folder / f"other-{name.replace('/', '-')}")
    seen.add(fingerprint(folder))
    assert len(seen) == 4


def test_what_nothing_reads_does_not_count(folder):
    before, stats = fingerprint(folder), state(folder)
    words = ("README.md", "LICENSE", "license.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md")
    for name in (*words, "pytorch_model.bin", ".gitattributes", "modeling_x.py"):
        (folder / name).write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "config.json").write_text("x")
    assert (fingerprint(folder), state(folder)) == (before, stats)


def test_no_name_can_stand_for_two_files(folder, tmp_path):
    digest = fingerprint(folder)
    (folder / "a").write_text("")
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (folder / "b").write_text("")
    two = fingerprint(folder)
    (folder / "b").unlink()
    (folder / "a").rename(folder / f"a {nothing}\nb")
    assert len({digest, two, fingerprint(folder)}) == 3


def test_the_earlier_fingerprint_is_what_it_was(folder):
    import hashlib

    lines = b"fedllm.checkpoint.v1\n"
    for name in sorted(p.name for p in folder.iterdir()):
        if name.endswith(("config.json", "tokenizer.json", ".safetensors")):
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            lines += f"{name} {digest}\n".encode()
    assert fingerprints(folder).earlier == hashlib.sha256(lines).hexdigest()


def test_weights_in_several_files_load(folder):
    sharded(folder)
    assert read_config(checkpoint_folder(str(folder)))[0].num_hidden_layers == 3


@pytest.mark.parametrize(
    "place", ["../elsewhere.safetensors", "pytorch_model.bin", "none.safetensors", "/etc/passwd", 7]
)
def test_an_index_names_safetensors_of_its_folder_alone(folder, place):
    places = sharded(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    save_file({"x": torch.zeros(1)}, folder.parent / "elsewhere.safetensors")
    write_index(folder, places | {"lm_head.weight": place})
    with pytest.raises(CheckpointError, match=r"is no \.safetensors file of this folder"):
        checkpoint_folder(str(folder))


@pytest.mark.parametrize(
    "names", [["tokenizer.json"], ["LICENSE.tokenizer.1.0.json"], ["x/../tokenizer.json"], "x", 7]
)
def test_a_tokenizer_that_names_other_files_is_refused(folder, names):
    """transformers takes such a name wherever ``tokenizer.*.json`` stands in it."""
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    (folder / "LICENSE.tokenizer.1.0.json").write_bytes((folder / "tokenizer.json").read_bytes())
    path.write_text(json.dumps(values | {"fast_tokenizer_files": names}))
    with pytest.raises(CheckpointError, match="fast_tokenizer_files") as caught:
        checkpoint_folder(str(folder))
    assert "remove the key" in caught.value.remedy
    path.write_text(json.dumps(values | {"fast_tokenizer_files": []}))
    checkpoint_folder(str(folder))


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {}, "metadata": {}}])
def test_a_damaged_index_is_refused(folder, index):
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        checkpoint_folder(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja", "sub"])
def test_links_that_leave_the_folder_are_refused(folder, name):
    other = folder.parent / "other"
    if name == "sub":
        other.mkdir()
    elif (folder / name).exists():
        shutil.move(folder / name, other)
    else:
        other.write_text("x")
    (folder / name).symlink_to(other)
    with pytest.raises(CheckpointError, match=r"link to what lies elsewhere(?s:.*)cp -rL"):
        checkpoint_folder(str(folder))
    with pytest.raises(CheckpointError, match="link"):
        fingerprint(folder)


def test_links_inside_and_to_the_folder_are_followed(folder):
    before = fingerprint(folder)
    (folder.parent / "link").symlink_to(folder)
    assert fingerprint(folder.parent / "link") == before
    (folder / "copy.json").symlink_to("config.json")
    assert fingerprint(folder) != before


def test_a_pipe_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "chat_template.jinja")
    with pytest.raises(CheckpointError, match="no regular file"):
        checkpoint_folder(str(folder))


def test_an_adapter_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an adapter(?s:.*)merge_and_unload"):
        checkpoint_folder(str(folder))


def test_a_distributed_checkpoint_is_refused(folder):
    (folder / "shard-00000-model-00000-of-00000.safetensors").write_text("x")
    with pytest.raises(CheckpointError, match="distributed checkpoint"):
        checkpoint_folder(str(folder))


def test_weights_under_another_name_are_not_taken_for_the_model(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor .*only weights"):
        checkpoint_folder(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused_and_not_passed_over(folder, name):
    values = json.loads((folder / name).read_text())
    values["auto_map"] = {"AutoConfig": "own.Config", "AutoTokenizer": ["own.Slow", None]}
    (folder / name).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"asks for code of its own \(auto_map\)"):
        read_config(checkpoint_folder(str(folder)))


def test_a_tokenizer_is_what_its_folder_says(tiny_checkpoint):
    from tokenizers import Tokenizer

    folder = tiny_checkpoint("qwen2")
    text = "my card 12 <|endoftext|>"
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer(text)["input_ids"] == plain.encode(text).ids
    assert len(tokenizer) == plain.get_vocab_size()


# The keys under which a tokenizer's class of transformers 5 opens a file, or would.
LEADING_ELSEWHERE = {
    "vocab": "PATH",
    "merges": "PATH",
    "vocab_file": "PATH",
    "tokenizer_file": "PATH",
    "entity_vocab_file": "PATH",
    "gguf_file": "PATH",
    "spm_file": "PATH",
    "init_inputs": ["PATH"],
    "sp_model_kwargs": {"model_file": "PATH"},
    "mecab_kwargs": {"mecab_option": "-d PATH"},
}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", LEADING_ELSEWHERE)
def test_a_tokenizer_reads_no_file_that_is_not_the_models(folder, key, name):
    """Else a model asks a site whether a line stands in a file of its own, its records too."""
    private = folder.parent / "private.csv"
    private.write_text("text,label\n")
    value = json.loads(json.dumps(LEADING_ELSEWHERE[key]).replace("PATH", str(private)))
    path = folder / name
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | {key: value}))
    for read in (lambda: checkpoint_folder(str(folder)), lambda: load_tokenizer(folder)):
        with pytest.raises(CheckpointError, match=f"{key} could make a library read") as caught:
            read()
        assert f"remove {key}" in caught.value.remedy
        assert str(private) not in str(caught.value)
    path.write_text(json.dumps(values | {key: None}))
    checkpoint_folder(str(folder))


def test_a_vocabulary_elsewhere_is_not_read_by_any_class_that_reads_one(tmp_path):
    (tmp_path / "private.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nprivate\n")
    for name in ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"):
        model = tmp_path / name
        model.mkdir()
        (model / "config.json").write_text('{"model_type": "bert"}')
        (model / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nown\n")
        settings = {"tokenizer_class": name, "vocab": str(tmp_path / "private.txt")}
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(CheckpointError):
            load_tokenizer(model)


def test_what_models_commonly_hold_is_no_reason_to_refuse_them(folder):
    path = folder / "tokenizer_config.json"
    common = {
        "special_tokens_map_file": "/somewhere/special_tokens_map.json",
        "name_or_path": "somebody/model",
        "tokenizer_file": None,
        "sp_model_kwargs": {},
        "local_files_only": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "add_prefix_space": False,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | common))
    checkpoint_folder(str(folder))
    assert load_tokenizer(folder)


@pytest.mark.parametrize("name", ["CodeLlamaTokenizer", "LlamaTokenizer", "GPT2Tokenizer", None])
def test_a_tokenizer_is_its_file_and_no_class_of_a_model(folder, name):
    """One class keeps something of a text for the next: a record changed the tokens of others."""
    path = folder / "tokenizer_config.json"
    before = load_tokenizer(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
    found = load_tokenizer(folder)
    assert type(found) is type(before) is PreTrainedTokenizerFast
    assert found("my card 12")["input_ids"] == before("my card 12")["input_ids"]


def test_a_tokenizer_of_older_files_is_what_they_come_to(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "card", "fee"]
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    found = load_tokenizer(tmp_path)
    assert type(found) is PreTrainedTokenizerFast
    assert found("Card fee late")["input_ids"] == [2, 5, 6, 1, 3]
    assert found.pad_token_id == 0


@pytest.mark.parametrize("name", [".x.jinja", ".jinja", "x.jinja"])
def test_a_template_counts_hidden_or_not_and_a_link_that_leaves_is_refused(folder, name):
    """transformers takes whatever fits its pattern, and said whether a file was there."""
    before = fingerprint(folder)
    path = folder / "additional_chat_templates" / name
    path.parent.mkdir()
    path.write_text("{{ messages[0]['content'] }}")
    assert fingerprint(folder) != before
    private = folder.parent / "private.txt"
    private.write_text("x")
    path.unlink()
    path.symlink_to(private)
    with pytest.raises(CheckpointError, match="link to what lies elsewhere"):
        checkpoint_folder(str(folder))


@pytest.mark.parametrize("name", ["README.md", "notes.bin", ".hidden"])
def test_links_that_leave_are_refused_though_nothing_reads_them(folder, name):
    (folder / name).symlink_to(folder.parent)
    with pytest.raises(CheckpointError, match="link to what lies elsewhere"):
        checkpoint_folder(str(folder))


def test_a_tokenizer_that_draws_is_refused(tmp_path):
    """The made-up step would hang on chance, and records' tokens on how many were read before."""
    words = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}
    for chance in (None, 0.0, 0.5):
        model = models.BPE(words, [("a", "b")], unk_token="<unk>", dropout=chance)
        Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
        settings = {"eos_token": "</s>", "unk_token": "<unk>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        if not chance:
            assert load_tokenizer(tmp_path)("ab")["input_ids"] == [4]
            continue
        with pytest.raises(CheckpointError, match="cuts words at random"):
            load_tokenizer(tmp_path)
