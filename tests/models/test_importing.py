"""A GGUF file becomes the model that it is, or nothing."""

from __future__ import annotations

import random
import struct

import gguf
import pytest
import torch
from support.gguf_files import byte_pairs, write
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import CheckpointError
from fedllm.models import importing
from fedllm.models.checkpoints import checkpoint_folder, load_tokenizer, load_weights, read_config
from fedllm.models.importing import import_gguf, read_gguf

TEXT = "the patient has a cough, Zürich 2.50 € 你好"


def logits(folder, model):
    config, architecture = read_config(checkpoint_folder(str(folder)))
    read = load_weights(folder, config, architecture, torch.float32, language_model=True).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        return read(input_ids=ids).logits, model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_folder_holds_the_files_model_and_its_tokenizer(kind, tmp_path):
    model = write(tmp_path / "a.gguf", kind)
    found = import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    read, right = logits(tmp_path / "out", model)
    assert torch.equal(read, right)
    assert load_tokenizer(tmp_path / "out")(TEXT)["input_ids"] == byte_pairs().encode(TEXT).ids
    assert found.values == sum(p.numel() for p in model.parameters())
    assert (found.architecture, found.licence) == (kind, "apache-2.0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlicense: "apache-2.0"\n---\n')


@pytest.mark.parametrize(("kind", "most"), [("Q8_0", 0.01), ("Q4_0", 0.2)])
def test_quantised_weights_become_the_numbers_that_they_stand_for(kind, most, tmp_path):
    model = write(tmp_path / "a.gguf", "qwen2", gguf.GGMLQuantizationType[kind])
    found = import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    read, right = logits(tmp_path / "out", model)
    assert 0 < float((read - right).abs().max()) < most
    assert found.kinds[kind] > 10


@pytest.mark.parametrize(
    ("stored", "asked", "kept"),
    [
        ("F16", None, torch.float16),
        ("BF16", None, torch.bfloat16),
        ("Q8_0", None, torch.float32),
        ("Q8_0", "bfloat16", torch.bfloat16),
    ],
)
def test_the_smallest_precision_that_loses_nothing_is_kept(stored, asked, kept, tmp_path):
    from safetensors.torch import load_file

    write(tmp_path / "a.gguf", "qwen2", gguf.GGMLQuantizationType[stored])
    import_gguf(tmp_path / "a.gguf", tmp_path / "out", asked)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {kept}


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(tmp_path):
    write(tmp_path / "a.gguf", "llama")
    whole = (tmp_path / "a.gguf").read_bytes()
    for size in (0, 3, 4, 20, 300, 5000, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut short|no GGUF file"):
            import_gguf(tmp_path / "cut.gguf", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rope.scaling.type", "yarn", "rope.scaling.type = 'yarn', which is not read"),
        ("attention.sliding_window", 64, "sliding_window = 64, which is not read"),
        ("attention.key_length", 32, "key_length = 32, and transformers would make it 16"),
        ("an.unknown.key", 1, "an.unknown.key = 1, which is not read"),
    ],
)
def test_what_would_be_left_out_in_silence_is_refused(key, value, words, tmp_path):
    add = gguf.GGUFWriter.add_string if isinstance(value, str) else gguf.GGUFWriter.add_uint32
    write(tmp_path / "a.gguf", "llama", more=lambda writer: add(writer, f"llama.{key}", value))
    with pytest.raises(CheckpointError, match=words):
        import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_the_model_has_no_place_for_are_refused(tmp_path):
    import numpy as np

    def factors(writer):
        writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32))

    write(tmp_path / "a.gguf", "llama", more=factors)
    with pytest.raises(CheckpointError, match="a part would be missing"):
        import_gguf(tmp_path / "a.gguf", tmp_path / "out")


def test_other_kinds_and_parts_of_files_are_refused(tmp_path):
    write(tmp_path / "a.gguf", "llama", architecture="mamba9")
    with pytest.raises(CheckpointError, match="kind 'mamba9' cannot be imported"):
        read_gguf(tmp_path / "a.gguf")
    split = {"more": lambda writer: writer.add_uint16("split.count", 3)}
    write(tmp_path / "b.gguf", "llama", **split)
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        read_gguf(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match="no file that is there"):
        read_gguf(tmp_path / "none.gguf")


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    write(tmp_path / "a.gguf", "llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_model_that_changes_while_it_is_saved_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "a.gguf", "llama")
    right = importing.checkpoints.load_weights

    def other(*args, **kwargs):
        model = right(*args, **kwargs)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)
        return model

    monkeypatch.setattr(importing.checkpoints, "load_weights", other)
    with pytest.raises(CheckpointError, match="other answers"):
        import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<QQ", 0, 2**62),
        struct.pack("<QQ", 2**62, 0),
        struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**62),
        struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**62),
        struct.pack("<QQQ", 0, 1, 2**62),
        struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<II", 9, 9) * 9,
        struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IQ", 99, 0),
        struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<I", 2**31) + bytes(64),
    ],
    ids=["pairs", "tensors", "numbers", "strings", "name", "nested", "kind", "dimensions"],
)
def test_counts_that_the_file_is_too_short_for_end_at_once(body, tmp_path):
    """The library behind it would read empty values until the memory is full."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + body + bytes(40))
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_gguf(tmp_path / "a.gguf")


def test_nothing_beside_the_file_is_read(tmp_path):
    model = write(tmp_path / "a.gguf", "llama")
    for name in ("adapter_config.json", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    read, right = logits(tmp_path / "out", model)
    assert torch.equal(read, right)


def test_what_the_file_says_does_not_steer_the_terminal(tmp_path):
    words = "mine\x1b[2J\n/etc/passwd: removed"
    write(tmp_path / "a.gguf", "llama", licence=words)
    done = CliRunner().invoke(
        app, ["model", "import", str(tmp_path / "a.gguf"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 2


def test_damaged_headers_end_in_words(tmp_path):
    write(tmp_path / "a.gguf", "llama")
    whole, chance = (tmp_path / "a.gguf").read_bytes(), random.Random(5)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(600)] = chance.choice([0, 1, 255, chance.randrange(256)])
        (tmp_path / "b.gguf").write_bytes(damaged)
        try:
            read_gguf(tmp_path / "b.gguf")
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_the_command_says_what_it_made(tmp_path):
    model = write(tmp_path / "a.gguf", "llama")
    done = CliRunner().invoke(
        app, ["model", "import", str(tmp_path / "a.gguf"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    values = sum(parameter.numel() for parameter in model.parameters())
    assert f"llama, {values:,} parameters" in done.stdout
    assert "apache-2.0" in done.stdout
