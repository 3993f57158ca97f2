"""Packed folders that somebody else made: half of one, one with links, and one that swells."""

from __future__ import annotations

import json
import zlib

import pytest
import torch
from safetensors.torch import save_file

from fedllm.compression.packed_file import FORMAT, read_packed
from fedllm.compression.packing import pack, unpack
from fedllm.errors import CheckpointError
from fedllm.models.exported import write_exported

# A model that is larger than what is packed beside it here.
CONFIG = json.dumps(
    {"model_type": "bert", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 80}
    | {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64}
)


@pytest.fixture
def packed(tmp_path):
    """A packed export of a matrix, with what centres its features beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    save_file({"w.weight": weights}, folder / "model.safetensors", {"format": "pt"})
    save_file({"center": torch.ones(64)}, folder / "feature_center.safetensors")
    (folder / "config.json").write_text(CONFIG)
    write_exported(folder, "merged", {"task": "classification"})
    pack(folder, tmp_path / "packed")
    return tmp_path / "packed"


def refused(packed, words):
    with pytest.raises(CheckpointError, match=words):
        unpack(packed, packed.with_name("again"))
    assert not packed.with_name("again").exists()


def test_half_a_packed_export_does_not_become_a_whole_one(packed):
    """Without the centre it would load, and answer otherwise."""
    (packed / "feature_center.safetensors").unlink()
    refused(packed, "feature_center.safetensors is missing")


def test_a_file_that_was_cut_is_not_said_to_be_whole(packed):
    (packed / "config.json").write_text("{}")
    refused(packed, "config.json is not of")


@pytest.mark.parametrize("name", ["vocab.txt", "README.md", "more.packed.safetensors"])
def test_no_file_of_elsewhere_is_copied_through_a_link(packed, tmp_path, name):
    secret = tmp_path / "secret.pem"
    secret.write_text("-----BEGIN PRIVATE KEY-----")
    (packed / name).symlink_to(secret)
    refused(packed, "is a link to what lies elsewhere")


@pytest.mark.parametrize("values", [15, 31])
def test_a_few_bytes_do_not_become_many(tmp_path, values):
    """Repetitions, which zlib reads as well, make a thousand numbers of a byte."""
    folder, side = tmp_path / "bomb", 1 << 11
    folder.mkdir()
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    wanted = side * side // 2 if values == 15 else side * side
    content = coder.compress(bytes(wanted)) + coder.flush()
    tensors = {
        "w#codes": torch.frombuffer(bytearray(content), dtype=torch.uint8),
        "w#values": torch.zeros(values),
        "w#scales": torch.ones(side, dtype=torch.float16),
    }
    words = {"format": "pt", "packed": FORMAT, "shapes": json.dumps({"w": [side, side]})}
    save_file(tensors, folder / "model.packed.safetensors", words | {"types": "{}"})
    with pytest.raises(CheckpointError, match="cannot hold 4194304 numbers"):
        dict(read_packed(folder / "model.packed.safetensors"))
    # Nor does it come so far: no model has such a matrix.
    (folder / "config.json").write_text(CONFIG)
    refused(folder, r"'w' has the shape \(2048, 2048\)")
