"""The model in memory is the one that was asked for."""

import json
import shutil

from safetensors.torch import load_file, save_file

from fedllm.config import RunConfig, parse
from fedllm.tasks.cache import ModelCache

LABELS = ("one", "two")


def config(folder, **lora):
    values = {"name": "tiny", "task": "classification", "model": {"path": str(folder)}}
    values |= {"data": {"train": "unused"}, "lora": {"rank": 2, **lora}}
    return parse(RunConfig, values, "test")


def test_only_what_matters_loads_the_model_again(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "model")
    models = ModelCache()
    first = models.get(config(folder), LABELS)
    assert models.get(config(folder), LABELS) is first
    assert models.get(config(folder), LABELS[::-1]).labels == LABELS[::-1]
    assert models.get(config(folder, alpha=3.0), LABELS).labels == LABELS
    again = models.get(config(folder), LABELS)
    assert again is not first
    (folder / "README.md").write_text("words")
    assert models.get(config(folder), LABELS) is again


def test_files_that_changed_are_read_again(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "model")
    models = ModelCache()
    before = models.get(config(folder), LABELS)
    weights = {name: value + 0.5 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    after = models.get(config(folder), LABELS)
    assert after.fingerprint != before.fingerprint
    changed = after.module.backbone.get_input_embeddings().weight
    assert not changed.equal(before.module.backbone.get_input_embeddings().weight)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<unk>"}))
    assert models.get(config(folder), LABELS).tokenizer.pad_token == "<unk>"
