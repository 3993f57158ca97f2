"""What a run released answers as it did there, on the base that it was trained on alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.hub_cache import named_by
from support.tasks import load_model

from fedllm.errors import CheckpointError, ConfigError
from fedllm.models.contents import check_contents
from fedllm.runs.record import read_config
from fedllm.runs.start import is_released
from fedllm.serving.released import load_released

LABELS = ("one", "two", "three")
IDS = torch.tensor([[4, 5, 6, 7, 8], [9, 4, 10, 11, 12]])
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}


def answers(model):
    with torch.no_grad():
        found = model.module(BATCH)
    return found[0] if isinstance(found, tuple) else found


def expected(folder):
    """As training itself would load it."""
    config = read_config(folder)
    model = load_model(config, LABELS if "classification" in config.task else ())
    untrained = answers(model)
    model.load_adapter(folder / "adapter")
    assert not torch.equal(answers(model), untrained)
    return answers(model)


@pytest.mark.parametrize(
    ("kind", "task", "sections"),
    [
        ("bert", "classification", {}),
        ("bert", "classification", {"lora": {"rank": 0}}),
        ("bert", "classification", {"lora": {"rank": 2, "method": "ffa"}}),
        ("bert", "classification", {"lora": {"rank": 2, "method": "core", "last_layers": 1}}),
        ("bert", "classification", {"model": {"pooling": "cls", "feature_scale": 3.0}}),
        ("bert", "classification", {"model": {"feature_center": "label_names"}}),
        ("llama", "classification", {"model": {"quantization": "int8"}}),
        ("bert", "token_classification", {}),
        ("llama", "instruction", {"lora": {"rank": 2, "method": "rolora"}}),
        ("llama", "causal", {"model": {"quantization": "int4"}}),
    ],
)
def test_a_run_and_its_adapter_by_itself_answer_alike(kind, task, sections, released, tmp_path):
    folder = released(kind, task, **sections)
    wanted = expected(folder)
    run = load_released(folder)
    assert torch.equal(answers(run.model), wanted)
    assert run.whole
    assert (run.about["run"], run.about["epsilon"]) == ("run", 7.9321)
    inside = load_released(folder / "adapter")
    assert torch.equal(answers(inside.model), wanted)
    assert inside.whole
    alone = tmp_path / "elsewhere"
    shutil.copytree(folder / "adapter", alone)
    found = load_released(alone, run.config.model.path)
    assert torch.equal(answers(found.model), wanted)
    assert not found.whole
    assert found.about["adapter"] == run.about["adapter"]
    assert np.isfinite(found.adapter).all()


def test_tensors_of_the_base_need_the_run(released, tmp_path):
    folder = released(lora={"rank": 2, "method": "bitfit"})
    assert torch.equal(answers(load_released(folder).model), expected(folder))
    shutil.copytree(folder / "adapter", tmp_path / "alone")
    with pytest.raises(ConfigError, match="tensors of the base model") as caught:
        load_released(tmp_path / "alone", read_config(folder).model.path)
    assert "run.toml" in caught.value.remedy


def test_a_moved_base_is_named(released, tiny_checkpoint, tmp_path):
    moved = tmp_path / "base"
    shutil.copytree(tiny_checkpoint("bert"), moved)
    folder = released()
    wanted = expected(folder)
    text = (folder / "run.toml").read_text().replace(str(tiny_checkpoint("bert")), "/nowhere/base")
    (folder / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"not on this machine .* /nowhere/base") as caught:
        load_released(folder)
    assert "--base" in caught.value.remedy
    assert torch.equal(answers(load_released(folder, str(moved)).model), wanted)


@pytest.mark.parametrize("other", ["roberta", "llama", "changed"])
@pytest.mark.parametrize("alone", [True, False])
def test_another_base_is_refused(other, alone, released, tiny_checkpoint, tmp_path):
    folder = released()
    if other == "changed":
        base = tmp_path / "changed"
        shutil.copytree(tiny_checkpoint("bert"), base)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    else:
        base = tiny_checkpoint(other)
    if alone:
        shutil.copytree(folder / "adapter", tmp_path / "alone")
        folder = tmp_path / "alone"
    with pytest.raises(CheckpointError, match="is of another base model") as caught:
        load_released(folder, str(base))
    assert "--base" in caught.value.remedy


def test_a_base_that_changed_where_it_lies_is_refused(released, tiny_checkpoint, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint("bert"), base)
    folder = released(model={"path": str(base)})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-5}))
    with pytest.raises(CheckpointError, match="is of another base model"):
        load_released(folder)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["one", "two"], "2 labels need 2 outputs, and it has 3"),
        (["one", "two", "three", "four"], "4 labels need 4 outputs"),
        ([], "0 labels need 0"),
        ("one two", "no list of texts"),
        (["one", 2, "three"], "no list of texts"),
        (["one", "one", "three"], "names a label twice"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, words, released):
    path = released() / "adapter" / "shared_model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": labels}))
    with pytest.raises(CheckpointError, match=words):
        load_released(path.parent)


def test_labels_of_tokens_that_do_not_fit_are_refused(released):
    path = released("bert", "token_classification") / "adapter" / "shared_model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["one", "two"]}))
    with pytest.raises(CheckpointError, match="2 labels need 5 outputs, and it has 7"):
        load_released(path.parent)


@pytest.mark.parametrize("name", ["head.safetensors", "adapter_model.safetensors"])
def test_half_an_adapter_is_refused(name, released):
    path = released() / "adapter" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_released(path.parent)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_released(path.parent)


def test_what_is_no_released_model_is_told(released, tiny_checkpoint, tmp_path):
    folder = released()
    assert is_released(folder)
    assert is_released(folder / "adapter")
    assert not is_released(tiny_checkpoint("bert"))
    with pytest.raises(ConfigError, match="no adapter"):
        load_released(tiny_checkpoint("bert"))
    with pytest.raises(ConfigError, match="there is no folder"):
        load_released(tmp_path / "nothing")
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        load_released(folder)


# --- a base by its repository ---------------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False])
def test_a_base_is_found_in_the_hubs_cache(alone, released, tiny_checkpoint, hub, tmp_path):
    folder = released("llama", "instruction")
    wanted = expected(folder)
    named_by(folder / "adapter", "north/tiny")
    text = (folder / "run.toml").read_text()
    (folder / "run.toml").write_text(text.replace(str(tiny_checkpoint("llama")), "/nowhere/base"))
    if alone:
        shutil.copytree(folder / "adapter", tmp_path / "alone")
        folder = tmp_path / "alone"
    with pytest.raises(ConfigError, match=r"north/tiny, is not in this machine's hub cache") as no:
        load_released(folder)
    assert "hf download north/tiny" in no.value.remedy
    assert "--base" in no.value.remedy
    snapshot = hub(tiny_checkpoint("llama"))
    found = load_released(folder)
    assert torch.equal(answers(found.model), wanted)
    assert found.config.model.path == str(snapshot)


def test_another_model_under_the_name_is_refused(released, tiny_checkpoint, hub, tmp_path):
    shutil.copytree(released("llama", "instruction") / "adapter", tmp_path / "alone")
    named_by(tmp_path / "alone", "north/tiny")
    hub(tiny_checkpoint("gpt2"))
    with pytest.raises(CheckpointError, match="is of another base model"):
        load_released(tmp_path / "alone")


def test_a_head_alone_is_found_by_the_runs_card(released, tiny_checkpoint, hub):
    folder = released(lora={"rank": 0}, card={"base_model": "north/tiny"})
    wanted = expected(folder)
    text = (folder / "run.toml").read_text()
    (folder / "run.toml").write_text(text.replace(str(tiny_checkpoint("bert")), "/nowhere/base"))
    hub(tiny_checkpoint("bert"))
    assert torch.equal(answers(load_released(folder).model), wanted)


def test_a_base_is_named_by_its_repository(released, tiny_checkpoint, hub, tmp_path):
    folder = released("llama", "instruction")
    wanted = expected(folder)
    with pytest.raises(ConfigError, match=r"no folder north/tiny, and no .* hub cache") as no:
        load_released(folder, "north/tiny")
    assert "hf download north/tiny" in no.value.remedy
    snapshot = hub(tiny_checkpoint("llama"))
    found = load_released(folder, "north/tiny")
    assert torch.equal(answers(found.model), wanted)
    assert found.config.model.path == str(snapshot)
    hub(tiny_checkpoint("gpt2"), "north/other")
    with pytest.raises(CheckpointError, match="is of another base model"):
        load_released(folder, "north/other")
    with pytest.raises(CheckpointError, match=r"there is no folder \.\./north/tiny"):
        load_released(folder, "../north/tiny")


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "a/b/c", "a--b/c", "north/..", "x", 7]
)
def test_what_is_no_repository_is_looked_for_nowhere(name, released, monkeypatch, tmp_path):
    shutil.copytree(released("llama", "instruction") / "adapter", tmp_path / "alone")
    named_by(tmp_path / "alone", name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedllm.exporting.found.cached_folder", lambda name: 1 / 0)
    with pytest.raises((ConfigError, CheckpointError)):
        load_released(tmp_path / "alone")


@pytest.mark.parametrize("leads", ["elsewhere", "up", "name", "folder"])
def test_a_snapshot_may_lead_to_its_own_files_alone(leads, tiny_checkpoint, hub, tmp_path):
    snapshot = hub(tiny_checkpoint("llama"))
    link, blobs = snapshot / "config.json", snapshot.parent.parent / "blobs"
    inside, digest = blobs.parent / "other", "ab" * 32
    inside.write_bytes(link.read_bytes())
    shutil.copy(inside, tmp_path / digest)
    link.unlink()
    if leads == "elsewhere":
        (blobs / digest).symlink_to(tmp_path / digest)
        link.symlink_to(blobs / digest)
    elif leads == "up":
        link.symlink_to(inside)
    elif leads == "name":
        shutil.copy(inside, blobs / "config")
        link.symlink_to(blobs / "config")
    else:
        (blobs / digest).mkdir()
        link.symlink_to(blobs / digest)
    with pytest.raises(CheckpointError, match="link to what lies elsewhere"):
        check_contents(snapshot)


@pytest.mark.slow
def test_the_commands_find_it_where_hf_home_says(released, tiny_checkpoint, hub, tmp_path):
    """As a program of its own, which could reach no network if it tried."""
    shutil.copytree(released("llama", "instruction") / "adapter", tmp_path / "alone")
    named_by(tmp_path / "alone", "north/tiny")
    program = [sys.executable, "-m", "fedllm", "generate", str(tmp_path / "alone")]
    ask = [*program, "--prompt", "my card", "--max-new-tokens", "4", "--json"]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_CACHE", None)

    def asked():
        return subprocess.run(
            ask, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )

    absent = asked()
    assert absent.returncode == 2, absent.stderr
    assert "hf download north/tiny" in absent.stderr
    hub(tiny_checkpoint("llama"))
    found = asked()
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["response_tokens"] <= 4
