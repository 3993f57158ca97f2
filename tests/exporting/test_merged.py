"""A merged checkpoint is the run's model, and nothing less."""

from __future__ import annotations

import json
import os

import pytest
import torch
from exporting.test_peft_format import TEXTS, own_shares, rows_of, use
from safetensors.torch import load_file
from support.tiny_models import save_tiny
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from fedllm.errors import CheckpointError, ConfigError, TrainingError
from fedllm.exporting import merged
from fedllm.exporting.effect import Effect
from fedllm.exporting.export import export
from fedllm.exporting.probe import answers, make_probe
from fedllm.exporting.released import read_released
from fedllm.models.checkpoints import checkpoint_folder
from fedllm.serving.exported import load_exported

LAST = {"last_layers": 1}


@pytest.mark.parametrize(
    ("kind", "task", "lora"),
    [
        ("llama", "instruction", {"method": "lora"}),
        ("llama", "causal", {"method": "core"}),
        ("gpt2", "causal", {"method": "fedsvd"}),
        ("gemma3_text", "causal", {"method": "ffa"}),
        ("qwen2", "causal", {"method": "bitfit"}),
        ("llama", "causal", {"method": "layers", "last_layers": 1}),
        ("bert", "classification", {"method": "rolora"}),
        ("modernbert", "token_classification", {}),
        ("t5", "instruction", {}),
    ],
)
def test_a_merged_checkpoint_answers_as_the_run_and_not_as_its_base(
    finished, tmp_path, kind, task, lora
):
    run = finished(kind, task, lora=lora)
    written = export(run, tmp_path / "out", "merged")
    assert written.largest < 5e-4
    assert "float32" in written.what
    released = read_released(run)
    probe = make_probe(released, seed=5)
    wanted = answers(released, probe)
    found = merged.read_back(released, tmp_path / "out", None, probe)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
    plain = Effect.of(released, probe).untrained
    assert (plain - wanted).abs().max() > 1e-2


def test_no_name_of_the_adapter_is_left_and_the_configuration_is_the_bases(
    finished, tmp_path, tiny
):
    base = save_tiny("llama", tmp_path / "base", attention_dropout=0.125)
    (base / "LICENSE").write_text("be kind")
    (base / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    run, out = finished("llama", "causal", base=base), tmp_path / "out"
    export(run, out, "merged")
    before = {**load_file(base / "model.safetensors")}
    after = load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"model.layers.{layer}.self_attn.{name}.weight"
        for layer in (1, 2)
        for name in ("q_proj", "v_proj")
    }
    told = json.loads((out / "config.json").read_text())
    assert told["attention_dropout"] == 0.125
    assert (out / "LICENSE").read_text() == "be kind"
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.5
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path


def test_a_standard_head_is_part_of_the_checkpoint(finished, tmp_path):
    run = finished("roberta", "token_classification", model={"feature_scale": 0.0})
    export(run, tmp_path / "out", "merged")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    released = read_released(run)
    probe = make_probe(released, seed=5)
    with torch.no_grad():
        found = model(**probe.inputs).logits[probe.mask.bool()]
    torch.testing.assert_close(found, answers(released, probe), atol=1e-4, rtol=1e-4)
    assert model.config.id2label[1] == f"B-{released.model.labels[0]}"
    assert not (tmp_path / "out" / "head.safetensors").exists()


def test_a_bias_that_the_class_has_not_is_in_its_weights(finished, tmp_path):
    run = finished("gpt2", model={"feature_scale": 0.0})
    written = export(run, tmp_path / "out", "merged")
    assert "has no bias" in written.notes[0]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    released = read_released(run)
    probe = make_probe(released, seed=5)
    with torch.no_grad():
        found = model(**probe.inputs).logits
    torch.testing.assert_close(found, answers(released, probe), atol=1e-4, rtol=1e-4)
    again = load_exported(tmp_path / "out").model
    with torch.no_grad():
        torch.testing.assert_close(again.module(probe.batch), found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "lora", [{}, pytest.param({"rank": 0, "last_layers": None}, marks=pytest.mark.slow)]
)
def test_the_script_needs_no_base(finished, tmp_path, lora):
    run = finished("bert", lora=lora, model={"feature_center": "label_names"})
    export(run, tmp_path / "out", "merged")
    _, wanted = own_shares(run)
    found = use(tmp_path / "out", *TEXTS)
    torch.testing.assert_close(rows_of(found), torch.stack(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("umask", "mode"), [(0o022, 0o644), pytest.param(0o002, 0o664, marks=pytest.mark.slow)]
)
def test_weights_are_for_whom_new_files_are(umask, mode, finished, tmp_path):
    """safetensors writes files of their owner alone."""
    before = os.umask(umask)
    try:
        export(finished("bert"), tmp_path / "out", "merged")
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert found["model.safetensors"] == found["config.json"] == mode


def test_weights_keep_the_type_of_the_base_or_that_which_is_asked_for(finished, tmp_path):
    base = tmp_path / "half"
    made = save_tiny("llama", tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(made, dtype=torch.bfloat16).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((made / name).read_bytes())
    run = finished("llama", "causal", base=base)
    written = export(run, tmp_path / "same", "merged")
    assert "bfloat16" in written.what
    kinds = {v.dtype for v in load_file(tmp_path / "same" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "same").dtype == torch.bfloat16
    assert written.largest < 0.2
    written = export(run, tmp_path / "other", "merged", dtype="float32")
    assert written.largest < 5e-4


def test_a_rounding_that_loses_what_was_trained_is_refused(finished, tmp_path):
    run = finished("llama", "causal", trained=0.01)
    with pytest.raises(TrainingError, match=r"(?s)bfloat16 lose what was trained.*--dtype float32"):
        export(run, tmp_path / "out", "merged", dtype="bfloat16")
    assert not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out", "merged").largest < 5e-4


def test_an_adapter_that_changes_nothing_is_refused(finished, tmp_path):
    run = finished("llama", "causal", trained=0.0)
    with pytest.raises(TrainingError, match="changes nothing"):
        export(run, tmp_path / "out", "merged")


@pytest.mark.parametrize("wrong", ["no adapter", "no scale", "half the layers"])
def test_a_merge_that_forgets_is_found_out(finished, tmp_path, monkeypatch, wrong):
    right = merged._change

    def change(name, layer, tensors):
        if wrong == "no adapter" or (wrong == "half the layers" and ".1." in name):
            return 0 * right(name, layer, tensors)
        return right(name, layer, tensors) / layer.scaling["default"]

    monkeypatch.setattr(merged, "_change", change)
    run = finished("llama", "causal")
    with pytest.raises(TrainingError, match=r"lose what was trained|answers otherwise"):
        export(run, tmp_path / "out", "merged")
    assert not (tmp_path / "out").exists()


def test_a_quantised_run_is_merged_into_the_weights_as_they_were(finished, tmp_path):
    written = export(
        finished("llama", "causal", model={"quantization": "int4"}), tmp_path / "out", "merged"
    )
    assert "int4" in written.notes[0]


def test_a_large_checkpoint_is_cut_into_shards_and_half_of_it_refused(
    finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(merged, "_SHARD", "12KB")
    run, out = finished("llama", "causal"), tmp_path / "out"
    export(run, out, "merged")
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert checkpoint_folder(str(out)) == out
    again = finished("llama", "causal", name="again", base=out)
    assert read_released(again).model.module is not None
    content = shards[-1].read_bytes()
    for damage in (shards[-1].unlink, lambda: shards[-1].write_bytes(content[:-8])):
        damage()
        with pytest.raises(CheckpointError, match="not the whole export"):
            checkpoint_folder(str(out))
        shards[-1].write_bytes(content)
    (out / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        checkpoint_folder(str(out))


def test_a_merged_classifier_is_a_base_model_again(finished, tmp_path):
    run, out = finished("bert"), tmp_path / "out"
    export(run, out, "merged")
    assert AutoModel.from_pretrained(out).config.model_type == "bert"
    assert read_released(finished("bert", name="again", base=out)).base == out


def test_a_type_of_weights_is_refused_where_there_are_none(finished, tmp_path):
    with pytest.raises(ConfigError, match="--dtype"):
        export(finished(), tmp_path / "out", "peft", dtype="float32")
