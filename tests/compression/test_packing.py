"""A packed folder: what is read back, that each byte is counted, and that damage is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import ALL, ENCODER_DECODERS, ENCODERS, save_tiny
from transformers import AutoModelForTokenClassification

from fedllm.compression import packed_file, packed_words
from fedllm.compression.clustering import cluster
from fedllm.compression.finer import Way, chosen_within
from fedllm.compression.fitting import check_fits
from fedllm.compression.packing import pack, unpack
from fedllm.errors import CheckpointError, ConfigError

OTHERS = ("config.json", "head.safetensors")
# A model that is larger than what is packed beside it here.
CONFIG = json.dumps(
    {"model_type": "bert", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 80}
    | {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64}
)


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    found = tmp_path / "model"
    found.mkdir()
    large = torch.randn(80, 64, generator=generator)
    large[large.abs() < 0.7] = 0
    tensors = {
        "layer.weight": large,
        "half.weight": torch.randn(64, 64, generator=generator).bfloat16(),
        "layer.bias": torch.randn(80, generator=generator),
        "tiny": torch.full((3,), 1e-12),
        "small.weight": torch.randn(4, 4, generator=generator),
        "places": torch.arange(5),
    }
    save_file(tensors, found / "model.safetensors", {"format": "pt"})
    (found / "config.json").write_text(CONFIG)
    save_file({"weight": torch.ones(90, 90)}, found / "head.safetensors")
    return found


def disk(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_each_byte_is_counted_once(folder, tmp_path):
    sizes = pack(folder, tmp_path / "packed")
    assert sizes.total_bytes == disk(tmp_path / "packed")
    assert sizes.files == sum((folder / n).stat().st_size for n in OTHERS)
    assert sizes.coded_weights == 80 * 64 + 64 * 64
    assert sizes.plain_weights == 80 + 3 + 16 + 5
    assert sizes.entropy_bits / 8 < sizes.codes
    weights = (tmp_path / "packed" / "model.packed.safetensors").stat().st_size
    assert sizes.times_smaller == pytest.approx(4 * (9216 + 104) / weights)


def test_what_is_read_back_are_the_clustered_weights_to_the_bit(folder, tmp_path):
    pack(folder, tmp_path / "packed", 100)
    unpack(tmp_path / "packed", tmp_path / "again")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert after.keys() == before.keys()
    for name in ("layer.weight", "half.weight"):
        right = torch.from_numpy(cluster(before[name].float().numpy(), 4).matrix())
        assert torch.equal(after[name], right.to(before[name].dtype))
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert torch.equal(after["layer.bias"], before["layer.bias"].half().float())
    # Float16 would make it zero.
    assert torch.equal(after["tiny"], before["tiny"])
    assert torch.equal(after["places"], before["places"])
    for name in OTHERS:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_numbers_that_16_bits_do_not_hold_stay_as_they_are(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["layer.bias"][3] = 1e6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    pack(folder, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(after["layer.bias"], tensors["layer.bias"])


def test_a_tokenizer_takes_less_and_comes_back_to_the_bit(folder, tmp_path):
    words = {"vocab.txt": "card\ncash\n" * 900, "tokenizer.json": '{"a": "b"}' * 900}
    for name, text in words.items():
        (folder / name).write_text(text)
    before = sum(path.stat().st_size for path in folder.iterdir())
    before -= (folder / "model.safetensors").stat().st_size
    sizes = pack(folder, tmp_path / "packed")
    assert sizes.total_bytes == disk(tmp_path / "packed")
    assert sizes.files_before == before
    assert sizes.files < before - 15_000
    assert sizes.folder_times_smaller == (4 * (9216 + 104) + before) / sizes.total_bytes
    unpack(tmp_path / "packed", tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        path.name for path in folder.iterdir()
    }
    for name, text in words.items():
        assert (tmp_path / "again" / name).read_text() == text


def test_a_tokenizer_that_would_become_too_much_or_is_cut_is_told(folder, tmp_path, monkeypatch):
    (folder / "vocab.txt").write_text("card\n" * 900)
    pack(folder, tmp_path / "packed")
    short = tmp_path / "packed" / "vocab.txt.zlib"
    whole = short.read_bytes()
    monkeypatch.setattr(packed_words, "_MOST_BYTES", 4499)
    cases = {"at most": whole, "incorrect header": b"x" + whole}
    for words, content in cases.items():
        short.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            unpack(tmp_path / "packed", tmp_path / "again")
    monkeypatch.undo()
    for content in (whole[:-1], whole + b"x"):
        short.write_bytes(content)
        with pytest.raises(CheckpointError, match="not one whole file"):
            unpack(tmp_path / "packed", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def lost(folder, other):
    """Return which share of each large matrix's squares is lost."""
    one, two = (load_file(place / "model.safetensors") for place in (folder, other))
    return {
        name: float((one[name] - two[name]).float().norm() ** 2 / one[name].float().norm() ** 2)
        for name in ("layer.weight", "half.weight")
    }


def test_what_room_is_left_goes_into_finer_values(folder, tmp_path):
    found = {}
    for times in (100.0, 4.7, 1.0):
        place = tmp_path / f"{times:g}"
        sizes = pack(folder, place, times)
        unpack(place, tmp_path / f"again{times:g}")
        found[times] = sizes, lost(folder, tmp_path / f"again{times:g}")
        assert sizes.total_bytes == disk(place)
        assert sum(sizes.matrices.values()) == 2
    (least, coarse), (some, between), (most, fine) = found.values()
    assert least.matrices == {4: 2, 5: 0, 6: 0}
    assert most.matrices == {4: 0, 5: 0, 6: 2}
    assert some.times_smaller >= 4.7
    assert most.weights_bytes > some.weights_bytes > least.weights_bytes
    assert sum(fine.values()) < sum(between.values()) < sum(coarse.values())
    assert max(fine.values()) < 0.002


def test_more_bits_go_where_they_win_most(tmp_path):
    """Of two matrices of one size, the one of which coarse values lose more."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(100, 100, generator=generator).sign()
    many = torch.randn(100, 100, generator=generator)
    (tmp_path / "model").mkdir()
    save_file({"a": few, "b": many}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    (tmp_path / "model" / "config.json").write_text(CONFIG)
    least = pack(tmp_path / "model", tmp_path / "least", 100).weights_bytes
    # Room for one of them.
    sizes = pack(tmp_path / "model", tmp_path / "some", 80_000 / (least + 2500))
    assert sum(sizes.matrices[bits] for bits in (5, 6)) == 1
    unpack(tmp_path / "some", tmp_path / "again")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert (after["b"] - many).square().mean() < 0.004


def test_the_next_bits_go_where_the_next_ones_win_most():
    """And not where the first ones did."""

    def ways(*lost):
        codes = [np.zeros(10 * place, np.uint8) for place in (1, 2, 3)]
        none, few = np.zeros(0, np.float32), np.zeros(0, np.float16)
        return [
            Way(bits, held, none, few, gone, 0.0)
            for bits, held, gone in zip(packed_file.BITS, codes, lost, strict=True)
        ]

    matrices = [ways(100.0, 10.0, 9.0), ways(90.0, 20.0, 0.0)]
    for room, bits in ((25, [4, 4]), (30, [5, 4]), (40, [5, 5]), (50, [5, 6]), (60, [6, 6])):
        assert [way.bits for way in chosen_within(matrices, room)] == bits


def test_what_is_packed_is_not_packed_again_and_what_is_not_is_not_unpacked(folder, tmp_path):
    pack(folder, tmp_path / "packed")
    with pytest.raises(ConfigError, match="packed already"):
        pack(tmp_path / "packed", tmp_path / "twice")
    with pytest.raises(ConfigError, match="is not packed"):
        unpack(folder, tmp_path / "plain")
    with pytest.raises(ConfigError, match="there already"):
        pack(folder, tmp_path / "packed")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="no weights"):
        pack(tmp_path / "none", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "none", "packed"]


def test_numbers_that_are_none_are_refused_by_name(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["layer.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layer\.weight holds NaN"):
        pack(folder, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def changed(path, change, metadata=None):
    """Write a packed file anew with other tensors or words."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = dict(file.metadata())
    change(tensors)
    save_file(tensors, path, words | (metadata or {}))


def removed(name):
    return lambda tensors: tensors.pop(name)


DAMAGE = {
    "no values": (removed("layer.weight#values"), None),
    "other scales": (
        lambda t: t.update({"layer.weight#scales": torch.ones(79, dtype=torch.float16)}),
        None,
    ),
    "scales of another type": (
        lambda t: t.update({"layer.weight#scales": torch.ones(80)}),
        None,
    ),
    "values of no bits": (
        lambda t: t.update({"layer.weight#values": torch.ones(16)}),
        None,
    ),
    "one value": (lambda t: t.update({"layer.weight#values": torch.tensor(1.0)}), None),
    "values of fewer bits": (
        lambda t: t.update({"layer.weight#values": t["layer.weight#values"][:15].clone()}),
        None,
    ),
    "codes cut off": (
        lambda t: t.update({"layer.weight#codes": t["layer.weight#codes"][:-40].clone()}),
        None,
    ),
    "another shape": (lambda t: None, {"shapes": json.dumps({"layer.weight": [80, 65]})}),
    "a shape that is none": (lambda t: None, {"shapes": '{"layer.weight": [80, -64]}'}),
    "a huge shape": (lambda t: None, {"shapes": '{"layer.weight": [1000000, 1000000]}'}),
    "a shape that is a text": (lambda t: None, {"shapes": '{"layer.weight": "80"}'}),
    "no shapes": (lambda t: None, {"shapes": "["}),
    "types that are none": (lambda t: None, {"types": '{"layer.weight": "complex128"}'}),
    "no types": (lambda t: None, {"types": "7"}),
    "another format": (lambda t: None, {"packed": "fedllm.packed.v9"}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_and_nothing_is_left(folder, tmp_path, name):
    pack(folder, tmp_path / "packed", 1.0)
    changed(tmp_path / "packed" / "model.packed.safetensors", *DAMAGE[name])
    with pytest.raises(CheckpointError, match=r"damaged|model does not have"):
        unpack(tmp_path / "packed", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", sorted(ALL | ENCODER_DECODERS))
def test_every_kind_of_model_fits_its_configuration(kind, tmp_path):
    """With the names that its own class gives, with and without a head."""
    made = save_tiny(kind, tmp_path / "base")
    tensors = load_file(made / "model.safetensors")
    check_fits(made, {name: tuple(values.shape) for name, values in tensors.items()})
    if kind in ENCODERS:
        model = AutoModelForTokenClassification.from_pretrained(made, num_labels=5)
        model.save_pretrained(tmp_path / "head")
        tensors = load_file(tmp_path / "head" / "model.safetensors")
        shapes = {name: tuple(values.shape) for name, values in tensors.items()}
        check_fits(tmp_path / "head", shapes)
        name = next(n for n in shapes if n.endswith("classifier.weight") or n == "score.weight")
        with pytest.raises(CheckpointError, match=rf"{name} has the shape \(6, 16\).*\(5, 16\)"):
            check_fits(tmp_path / "head", shapes | {name: (6, 16)})


def test_another_configuration_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    """Also where it is packed: what cannot be unpacked is not packed."""
    made = save_tiny("llama", tmp_path / "base", hidden_size=64, intermediate_size=96)
    pack(made, tmp_path / "packed")
    path = tmp_path / "packed" / "config.json"
    told = json.loads(path.read_text())
    monkeypatch.setattr(packed_file, "decode", lambda *_: 1 / 0)
    right, layer = load_file(made / "model.safetensors"), "model.layers.2.mlp.up_proj.weight"
    assert right[layer].shape == (96, 64)
    for change, words in (
        ({"intermediate_size": 80}, r"layers\.0\.mlp\.down_proj.* \(64, 96\).* \(64, 80\)"),
        ({"num_hidden_layers": 2}, r"layers\.2\.input_layernorm.* \(64,\).*none of that name"),
        ({"model_type": "nobodys"}, "nobodys"),
    ):
        path.write_text(json.dumps(told | change))
        with pytest.raises(CheckpointError, match=words) as caught:
            unpack(tmp_path / "packed", tmp_path / "again")
        assert caught.value.remedy
        (made / "config.json").write_text(json.dumps(told | change))
        with pytest.raises(CheckpointError, match=words):
            pack(made, tmp_path / "other")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        unpack(tmp_path / "packed", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "other").exists()


def test_a_file_that_is_cut_short_is_told(folder, tmp_path):
    pack(folder, tmp_path / "packed")
    path = tmp_path / "packed" / "model.packed.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        unpack(tmp_path / "packed", tmp_path / "again")
