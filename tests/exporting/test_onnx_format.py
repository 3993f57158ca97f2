"""A graph of ONNX answers as the run, for texts of any number and length."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from exporting.test_merged import TEXTS
from exporting.test_peft_format import own_shares, rows_of, same_tags, use

from fedllm.errors import ConfigError, TrainingError
from fedllm.exporting import onnx_format
from fedllm.exporting.export import export

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")


@pytest.mark.parametrize(
    ("kind", "task", "sections"),
    [
        ("bert", "classification", {"model": {"feature_center": "label_names"}}),
        ("bert", "classification", {"lora": {"rank": 0, "last_layers": None}}),
        ("roberta", "classification", {"model": {"pooling": "cls", "feature_scale": 0.0}}),
        ("modernbert", "token_classification", {}),
        ("llama", "classification", {}),
        ("llama", "causal", {"lora": {"method": "core"}}),
        ("qwen2", "instruction", {}),
        ("gemma3_text", "causal", {"lora": {"method": "bitfit"}}),
    ],
)
def test_a_graph_answers_as_the_run(finished, tmp_path, kind, task, sections):
    run, out = finished(kind, task, **sections), tmp_path / "out"
    written = export(run, out, "onnx")
    assert written.largest < 5e-4
    assert (out / "model.onnx").exists()
    assert not [path for path in out.iterdir() if path.is_dir()]
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path


def test_the_script_needs_onnxruntime_alone(finished, tmp_path):
    run = finished("bert")
    export(run, tmp_path / "out", "onnx")
    text = (tmp_path / "out" / "use.py").read_text()
    assert "torch" not in text
    assert "transformers" not in text
    _, wanted = own_shares(run)
    found = use(tmp_path / "out", *TEXTS)
    torch.testing.assert_close(rows_of(found), torch.stack(wanted), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_scripts_of_tags_and_of_answers_run(finished, tmp_path, tiny):
    run = finished("bert", "token_classification")
    export(run, tmp_path / "tags", "onnx")
    _, wanted = own_shares(run)
    for line, rows in zip(use(tmp_path / "tags", *TEXTS), wanted, strict=True):
        same_tags(line, rows)
    run = finished("llama", "instruction", name="other")
    export(run, tmp_path / "answers", "onnx")
    export(run, tmp_path / "peft", "peft")
    assert use(tmp_path / "answers", "card cash") == use(
        tmp_path / "peft", tiny("llama"), "card cash"
    )


def test_a_large_graph_has_its_weights_beside_it(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "_MOST_INSIDE_BYTES", 0)
    run, out = finished("bert"), tmp_path / "out"
    assert export(run, out, "onnx").largest < 5e-4
    assert (out / "model.onnx.data").stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["gpt2", "distilbert"])
def test_an_architecture_without_a_graph_is_told_which_have_one(finished, tmp_path, kind):
    task = "causal" if kind == "gpt2" else "classification"
    with pytest.raises(ConfigError, match=rf"(?s){kind}.*modernbert, qwen2.*--format merged"):
        export(finished(kind, task), tmp_path / "out", "onnx")


@pytest.mark.parametrize("wrong", ["scale", "pooling", "adapter"])
def test_a_graph_that_answers_otherwise_does_not_stand(finished, tmp_path, monkeypatch, wrong):
    if wrong == "adapter":
        monkeypatch.setattr(
            onnx_format, "merged_base", lambda released: released.model.peft.unload()
        )
    else:
        from fedllm.exporting.kinds import TrainedHead

        right = TrainedHead.module

        def module(self):
            head = right.fget(self)
            if wrong == "scale":
                head.scale = 0.0
            else:
                head.pooling = "cls"
            return head

        monkeypatch.setattr(TrainedHead, "module", property(module))
    with pytest.raises(TrainingError, match=r"differ by up to .* 0\.001 is the limit"):
        export(finished("bert"), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"(?s)onnxruntime.*'onnx'"):
        export(finished("bert"), tmp_path / "out", "onnx")


def test_an_unknown_format_is_refused_by_name():
    done = subprocess.run(
        [sys.executable, "-m", "fedllm", "export", "x", "--format", "pickle", "--out", "y"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "merged" in done.stderr
