"""Kept models are read for ever, bit for bit: a base model, an adapter, a pretraining run."""

from __future__ import annotations

import os
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.kept import V1, V2, damaged, read, read_lines
from peft import PeftModel
from safetensors.torch import load_file
from support.tasks import load_model
from transformers import AutoModel

from fedllm.config import RunConfig, parse, to_toml
from fedllm.errors import CheckpointError, ConfigError
from fedllm.federation.protocol.wire import digest
from fedllm.models.checkpoints import Fingerprints, fingerprint, fingerprints
from fedllm.models.shared import SharedModel
from fedllm.pretraining.checkpoint import load_tensors, newest_checkpoint
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.course import Course
from fedllm.pretraining.folder import claim, finished_model
from fedllm.pretraining.manifest import load_manifest, open_shards
from fedllm.pretraining.material import make_sampler
from fedllm.pretraining.metrics import add_metrics, curve
from fedllm.pretraining.parallel import World
from fedllm.pretraining.shards import tokenise
from fedllm.pretraining.tokenizer import load_tokenizer
from fedllm.runs.observer import Observer, StepReport
from fedllm.runs.progress import replay

ADAPTER, BASE = V1 / "adapter", V1 / "model"
ADAPTER_NOW = V2 / "adapter"
ADAPTERS = pytest.mark.parametrize("kept", [ADAPTER, ADAPTER_NOW], ids=["v1", "v2"])
PRETRAINED = V1 / "pretraining" / "out"
# What changed of the folder of a pretraining run.
PRETRAINED_NOW = V2 / "pretraining" / "out"
CORPUS_TIME_S = 1_700_000_000
LABELS = ("one", "two", "three")
ALONE = World(0, 1, torch.device("cpu"))


def shared_model() -> SharedModel:
    """Return the base model of the kept adapter, untrained."""
    values = {
        "name": "adapter",
        "task": "classification",
        "seed": 11,
        "model": {
            "path": str(BASE),
            "max_length": 16,
            "head_start": "zero",
            "feature_center": "zero",
        },
        "lora": {"rank": 2},
        "data": {"train": "records.jsonl", "labels": LABELS},
    }
    return load_model(parse(RunConfig, values, "golden"), LABELS)


def test_a_base_model_has_the_fingerprint_that_it_had():
    now, before = (read(folder / "known.json")["fingerprint"] for folder in (ADAPTER_NOW, ADAPTER))
    assert now == "39c438ba205e9ee697c5e02deaf29376967ba7105df3537c0e3d7ebb26240a53"
    assert before == "b8c67b30886d2e7f3ae19bb9993504628ab3c054863e61e3d7f3d3007ba753a6"
    assert fingerprint(BASE) == now
    assert fingerprints(BASE) == Fingerprints(current=now, earlier=before)


def test_every_party_starts_from_the_same_adapter():
    model = shared_model()
    for kept in (ADAPTER, ADAPTER_NOW):
        assert model.manifest.fingerprint == read(kept / "known.json")["manifest"]
    assert model.initial.astype("<f4").tobytes() == (ADAPTER / "initial.f4").read_bytes()


@ADAPTERS
def test_an_adapter_is_loaded_bit_for_bit_and_written_as_it_was(tmp_path, kept, caplog):
    model, folder = shared_model(), kept / "adapter"
    model.load_adapter(folder)
    assert ("an earlier kind of fingerprint" in caplog.text) == (kept == ADAPTER)
    assert model.adapter().astype("<f4").tobytes() == (ADAPTER / "adapter.f4").read_bytes()
    model.save_adapter(tmp_path / "again")
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    # An earlier adapter is written with the fingerprint of today.
    now = ADAPTER_NOW / "adapter" / "shared_model.json"
    assert (tmp_path / "again" / "shared_model.json").read_bytes() == now.read_bytes()
    about = read(folder / "shared_model.json")
    assert read(now) == about | {"base_fingerprint": model.fingerprint}
    assert (about["task"], about["labels"]) == ("classification", list(LABELS))


def test_peft_loads_the_kept_adapter():
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), ADAPTER / "adapter")
    kept = load_file(ADAPTER / "adapter" / "adapter_model.safetensors")
    found = {
        name.replace(".default", ""): value
        for name, value in loaded.state_dict().items()
        if ".lora_" in name
    }
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)


@ADAPTERS
def test_a_damaged_adapter_is_refused(tmp_path, kept):
    model = shared_model()
    shutil.copytree(kept / "adapter", tmp_path / "adapter")
    about, weights = (
        tmp_path / "adapter" / name for name in ("shared_model.json", "adapter_model.safetensors")
    )
    content = about.read_bytes()
    # Up to the labels; how a classifier pools is for readers of the file.
    for changed in damaged(content[:200], every=9, start=6):
        about.write_bytes(changed + content[200:])
        with pytest.raises(CheckpointError):
            model.load_adapter(tmp_path / "adapter")
    about.write_bytes(content)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        model.load_adapter(tmp_path / "adapter")


def pretrained(to: Path) -> Path:
    """Return the folder of a run as it is left today."""
    shutil.copytree(PRETRAINED, to)
    shutil.copytree(PRETRAINED_NOW, to, dirs_exist_ok=True)
    return to


def pretrain_config(folder: Path = PRETRAINED) -> PretrainConfig:
    values = tomllib.loads((folder / "run.toml").read_text())
    return parse(PretrainConfig, values, "golden")


def test_the_configuration_of_a_pretraining_run_is_read_and_written_as_it_was():
    config = pretrain_config()
    assert (config.name, config.training.steps, config.model.width) == ("kept", 6, 8)
    lines = (PRETRAINED / "run.toml").read_text().splitlines()
    assert set(lines) <= set(to_toml(config).splitlines())
    assert pretrain_config(PRETRAINED_NOW) == config, "a later key stands at its default"
    assert to_toml(config) == (PRETRAINED_NOW / "run.toml").read_text()


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Put the kept corpus into the working directory, as old as it was."""
    shutil.copy(V1 / "pretraining" / "corpus.jsonl", tmp_path)
    os.utime(tmp_path / "corpus.jsonl", (CORPUS_TIME_S, CORPUS_TIME_S))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "corpus.jsonl"


def test_a_pretraining_run_goes_on_whichever_version_began_it(tmp_path, corpus):
    now, before = pretrained(tmp_path / "now"), tmp_path / "before"
    shutil.copytree(PRETRAINED, before)
    for out in (now, before):
        claim(pretrain_config(), out, resume=True)
        other = pretrain_config().model_copy(update={"seed": 1})
        with pytest.raises(ConfigError, match="differs from the configuration"):
            claim(other, out, resume=True)
    assert not (before / "inputs.json").exists()


def test_a_finished_model_is_the_one_that_its_inputs_say(tmp_path, corpus):
    out = pretrained(tmp_path / "out")
    assert finished_model(pretrain_config(), out) == out / "model"
    inputs = read(out / "inputs.json")
    assert inputs["made_from"]["data"]["train"] == [[digest(corpus.read_bytes())]]
    (file,) = inputs["files"].values()
    assert file == [corpus.stat().st_size, CORPUS_TIME_S * 10**9, digest(corpus.read_bytes())]
    corpus.write_text(corpus.read_text()[:-2])
    with pytest.raises(ConfigError, match=r"data\.train"):
        finished_model(pretrain_config(), out)
    # Of an earlier run nobody can tell; the words say how to use its model all the same.
    shutil.copytree(PRETRAINED, tmp_path / "before")
    with pytest.raises(ConfigError, match=r"set model\.path to"):
        finished_model(pretrain_config(), tmp_path / "before")


def test_inputs_are_written_as_they_were(tmp_path, corpus):
    claim(pretrain_config(), tmp_path / "out", resume=False)
    written, kept = read(tmp_path / "out" / "inputs.json"), read(PRETRAINED_NOW / "inputs.json")
    assert written["made_from"] == kept["made_from"]
    assert list(written["files"].values()) == list(kept["files"].values())
    assert list(written["files"]) == [str(corpus)]


def test_the_progress_of_a_pretraining_run_is_told():
    told = read_lines(PRETRAINED_NOW / "progress.jsonl")
    start, *steps = (line for line in told if line["kind"] in ("started", "advanced"))
    assert (start["run"], start["unit"], start["total"], start["sites"]) == ("kept", "steps", 6, 0)
    assert [line["report"]["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    observer = _Steps()
    for line in (PRETRAINED_NOW / "progress.jsonl").read_bytes().splitlines():
        replay(line, "here", None, observer)
    assert [report.step for report in observer.heard] == [1, 2, 3, 4, 5, 6]


class _Steps(Observer):
    def __init__(self) -> None:
        self.heard: list[StepReport] = []

    def advanced(self, report: StepReport) -> None:
        self.heard.append(report)


def test_shards_are_read_and_written_as_they_were(tmp_path, corpus):
    manifest = load_manifest(PRETRAINED / "tokens")
    now = load_manifest(PRETRAINED_NOW / "tokens")
    assert replace(now, key=manifest.key) == manifest, "the key alone is another"
    summary = read(PRETRAINED / "summary.json")
    assert manifest.fingerprint == summary["data"]["fingerprint"]
    (part,), (held_out,) = manifest.sources, manifest.evaluation
    assert (part.documents, part.tokens, part.text_bytes, part.duplicates) == (25, 200, 564, 1)
    assert (held_out.documents, held_out.tokens, manifest.boundary) == (15, 120, 1)
    (shard,) = open_shards(PRETRAINED / "tokens", part, manifest.dtype)
    assert (len(shard), int((shard == 1).sum()), int(shard[0]), int(shard[-1])) == (201, 26, 1, 1)
    again = tokenise(pretrain_config(), load_tokenizer(PRETRAINED / "tokenizer"), Path("tokens"))
    assert again.fingerprint == manifest.fingerprint
    assert again.training_fingerprint == manifest.training_fingerprint
    assert again == now
    assert (tmp_path / "tokens" / "manifest.json").read_bytes() == (
        PRETRAINED_NOW / "tokens" / "manifest.json"
    ).read_bytes()
    for name in (*part.shards, *held_out.shards):
        kept = (PRETRAINED / "tokens" / name).read_bytes()
        assert (tmp_path / "tokens" / name).read_bytes() == kept


def test_a_pretraining_checkpoint_is_read_bit_for_bit(tmp_path):
    found = newest_checkpoint(PRETRAINED / "checkpoints", ALONE)
    assert found is not None
    path, course = found
    model = load_file(PRETRAINED / "model" / "model.safetensors")
    tensors = {f"model.{name}": torch.zeros_like(value) for name, value in model.items()}
    load_tensors(path, tensors)
    # The last checkpoint holds the model that was given out.
    assert all(torch.equal(tensors[f"model.{name}"], value) for name, value in model.items())
    manifest = load_manifest(PRETRAINED / "tokens")
    sampler = make_sampler(pretrain_config(), manifest, PRETRAINED / "tokens")
    sampler.restore(course.pop("sampler"))
    assert Course(**course).step == 6
    rows = np.concatenate(sampler.next(100)).astype("<i8")
    assert (
        digest(rows.tobytes()) == "c4ff1989639be388724a21cd7adaeaebe0c7185b8faa62919613d3ab61db974e"
    )


def test_a_damaged_pretraining_checkpoint_is_refused(tmp_path):
    shutil.copytree(PRETRAINED / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "step-00000006" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        newest_checkpoint(tmp_path / "checkpoints", ALONE)


def test_the_curve_of_a_pretraining_run_is_read_and_written_as_it_was(tmp_path):
    points = curve(PRETRAINED / "metrics.jsonl")
    assert [(point["step"], point["tokens"]) for point in points] == [(0, 0), (3, 48), (6, 96)]
    summary = read(PRETRAINED / "summary.json")
    assert points[-1]["bits_per_byte"] == summary["metrics"]["bits_per_byte"]
    for line in read_lines(PRETRAINED / "metrics.jsonl"):
        add_metrics(tmp_path / "again.jsonl", line)
    assert (tmp_path / "again.jsonl").read_bytes() == (PRETRAINED / "metrics.jsonl").read_bytes()
    weights = (PRETRAINED / "model" / "model.safetensors").read_bytes()
    assert digest(weights) == summary["model"]["sha256"]
