"""From a finished run to a smaller model in a folder that predicts and generates as it did."""

from __future__ import annotations

import json

import pytest
import torch
from exporting.conftest import finished, tiny
from support.tiny_models import WORDS
from torch import nn
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.compression import steps, weight_only
from fedllm.compression.distilling import Distillation
from fedllm.compression.int8 import Int8Linear
from fedllm.compression.integers import INTEGERS
from fedllm.compression.integers_folder import load_integers
from fedllm.compression.packing import pack, unpack
from fedllm.compression.steps import (
    Pruning,
    Texts,
    distil_run,
    prune_run,
    quantize_run,
)
from fedllm.compression.teaching import Teaching
from fedllm.compression.whole import open_whole
from fedllm.errors import CheckpointError, ConfigError, DataError, TrainingError
from fedllm.exporting.effect import Effect, rms
from fedllm.exporting.probe import answers, make_probe
from fedllm.exporting.released import read_released
from fedllm.serving.exported import load_exported
from fedllm.serving.usable import open_usable

__all__ = ["finished", "tiny"]


def silent(*_):
    pass


@pytest.fixture
def texts(tmp_path):
    lines = [" ".join(WORDS[(i * j) % 12] for j in range(2, 9)) for i in range(1, 30)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    return Texts(str(tmp_path / "texts.txt"), "text")


def logits(usable, asked):
    """Return what a folder's model says, in order."""
    return [[share for _, share in said.labels] for said in usable.predicting.predict(asked)]


KINDS = [("bert", "classification"), ("bert", "token_classification"), ("llama", "instruction")]


@pytest.mark.parametrize(("kind", "task"), [*KINDS, ("llama", "classification")])
def test_a_whole_model_answers_as_the_run(finished, kind, task):
    run = finished(kind, task)
    released = read_released(run)
    probe = make_probe(released)
    wanted = answers(released, probe)
    whole = open_whole(run)
    torch.testing.assert_close(answers(whole.released, probe), wanted, atol=1e-5, rtol=1e-4)
    assert whole.model.peft is None
    assert not any(".lora_" in name for name, _ in whole.module.named_parameters())


CENTERED = {"model": {"feature_center": "label_names", "feature_scale": 10.0}}


@pytest.mark.parametrize(
    ("kind", "sections", "to"),
    [
        ("bert", {}, "int8"),
        ("bert", CENTERED, "int8"),
        ("bert", CENTERED, "int8-weights"),
        ("llama", {"model": {"feature_scale": 0.0}}, "int4"),
        ("llama", {"model": {"feature_scale": 0.0}}, "bfloat16"),
    ],
)
def test_a_quantised_classifier_says_nearly_the_same(finished, tmp_path, kind, sections, to):
    run = finished(kind, **sections)
    quantize_run(run, tmp_path / "small", to)
    asked = ["card pay", "my lost card", "open"]
    before, after = (logits(open_usable(place), asked) for place in (run, tmp_path / "small"))
    for one, other in zip(before, after, strict=True):
        assert one == pytest.approx(other, abs=0.2 if to == "int4" else 0.05)
    told = json.loads((tmp_path / "small" / "export.json").read_text())
    assert (told["format"], told["task"], told["column"]) == (to, "classification", "text")
    assert "what the run released alone" in (tmp_path / "small" / "README.md").read_text()
    # No folder of this machine.
    for path in (tmp_path / "small").iterdir():
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("kind", "to"),
    [("llama", "int8"), ("llama", "float16"), *(("gemma3_text", to) for to in INTEGERS)],
)
def test_a_quantised_decoder_writes(finished, tmp_path, kind, to):
    run = finished(kind, "instruction")
    written = quantize_run(run, tmp_path / "small", to)
    found = open_usable(tmp_path / "small")
    (done,) = found.generator.write([found.prompt("card", 5).ids], _writing(5))
    assert done.tokens or done.finish == "stop"
    assert found.prompting is not None
    assert 0 < written.largest < (3 if to == "int4" else 1)
    if to in INTEGERS:
        again, _ = load_integers(tmp_path / "small")
        assert again.dtype == torch.float32
        assert to_words(again) == []


def test_what_was_written_is_asked_as_the_model_in_memory(finished, tmp_path, monkeypatch):
    # A tied table is read a few rows at a time while a run trains, and whole elsewhere; few rows
    # become bfloat16. Widths of tiny models are too small for it otherwise.
    monkeypatch.setattr(weight_only, "_INPUTS", 16)
    quantize_run(finished("gemma3_text", "instruction"), tmp_path / "small", "int8-weights")


def to_words(model):
    """Return the parts that are not of integers."""
    return [n for n, p in model.named_modules() if isinstance(p, nn.Linear | nn.Embedding)]


def test_what_is_quantised_is_not_quantised_again(finished, tmp_path):
    quantize_run(finished("bert"), tmp_path / "small", "int4")
    with pytest.raises(ConfigError, match="is quantised already"):
        quantize_run(tmp_path / "small", tmp_path / "smaller", "int8")
    assert not (tmp_path / "smaller").exists()


@pytest.mark.parametrize(
    ("kind", "task", "to"), [("bert", "classification", "int8"), ("llama", "instruction", "int4")]
)
def test_a_model_is_taught_to_be_of_integers(finished, texts, tmp_path, kind, task, to):
    run, heard = finished(kind, task), []
    teaching = Teaching(Distillation(3), 4)
    written = quantize_run(
        run, tmp_path / "small", to, texts, teaching, lambda *said: heard.append(said)
    )
    assert [step for step, _, _ in heard] == [1, 2, 3]
    assert "in 3 steps of 4" in " ".join(written.notes)
    assert "public had a part in it" in (tmp_path / "small" / "README.md").read_text()
    assert open_usable(tmp_path / "small") is not None
    assert list(tmp_path.glob(".*")) == []


def test_teaching_that_was_broken_off_goes_on(finished, texts, tmp_path, monkeypatch):
    from functools import partial

    from fedllm.compression import teaching as module

    monkeypatch.setattr(module, "Unfinished", partial(module.Unfinished, every_s=0.0))
    run, small, heard = finished("bert"), tmp_path / "small", []
    teaching = Teaching(Distillation(4), 4)

    def told(step, steps, loss):
        heard.append(step)
        if heard == [1, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil_run(run, small, 0.7, texts, teaching, told)
    assert (tmp_path / ".small.teaching").exists()
    # Another one in the same place would be another model.
    with pytest.raises(ConfigError, match="another teaching"):
        distil_run(run, small, 0.7, texts, Teaching(Distillation(5), 4), told)
    distil_run(run, small, 0.7, texts, teaching, told)
    assert heard == [1, 2, 3, 4]
    assert not (tmp_path / ".small.teaching").exists()
    whole = tmp_path / "whole"
    distil_run(run, whole, 0.7, texts, teaching, told)
    name = "model.safetensors"
    assert (whole / name).read_bytes() == (small / name).read_bytes()


def test_integers_that_are_read_back_otherwise_are_not_handed_over(finished, tmp_path, monkeypatch):
    """As of a disk that gives other bytes than it was given."""
    from fedllm.compression import handing_over

    def other(folder):
        model, layers = load_integers(folder)
        for part in model.modules():
            if isinstance(part, Int8Linear):
                part.weight[0, 0] += 1
                break
        return model, layers

    monkeypatch.setattr(handing_over, "load_integers", other)
    with pytest.raises(TrainingError, match="does not hold what was written"):
        quantize_run(finished("bert"), tmp_path / "small", "int8")
    assert list(tmp_path.glob("*small*")) == []


def _writing(count):
    from fedllm.models.generation import Writing

    return Writing(count)


def test_spans_are_found_by_an_exported_model(finished, tmp_path):
    run = finished("bert", "token_classification", model={"feature_scale": 0.0})
    quantize_run(run, tmp_path / "small", "float16")
    asked = ["card pay my lost", "open bank"]
    before, after = (
        [said.fields(0) for said in open_usable(place).predicting.predict(asked)]
        for place in (run, tmp_path / "small")
    )
    assert [[s["label"] for s in one["spans"]] for one in before] == [
        [s["label"] for s in one["spans"]] for one in after
    ]


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_pruned_models_are_smaller_checkpoints(finished, texts, tmp_path, kind, task):
    run = finished(kind, task)
    asked = Pruning("share", 0.5, channels=0.25, blocks=0.34)
    teaching = Teaching(Distillation(3), 4)
    written = prune_run(run, tmp_path / "small", asked, texts, teaching, silent)
    assert "50% of the weights of its blocks are zero" in " ".join(written.notes)
    card = (tmp_path / "small" / "README.md").read_text()
    assert "called public had a part in it" in card
    assert "what the run released alone" not in card
    found = load_exported(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["intermediate_size"] == 18
    assert (
        len(
            found.network.base_model.get_submodule("layers" if kind == "llama" else "encoder.layer")
        )
        == 2
    )
    pack(tmp_path / "small", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    zeros = [
        [float((p == 0).float().mean()) for p in load_exported(place).network.parameters()]
        for place in (tmp_path / "small", tmp_path / "again")
    ]
    assert zeros[0] == zeros[1]


def test_a_student_is_written_and_the_run_is_as_it_was(finished, texts, tmp_path):
    run = finished("bert")
    heard = []
    teaching = Teaching(Distillation(4), 4)
    written = distil_run(
        run, tmp_path / "small", 0.7, texts, teaching, lambda *said: heard.append(said)
    )
    assert [step for step, _, _ in heard] == [1, 2, 3, 4]
    assert "began as 0, 2" in written.notes[0]
    assert open_usable(tmp_path / "small").predicting is not None
    assert not (run / "small").exists()


def test_what_cannot_be_is_refused_and_nothing_is_left(finished, texts, tmp_path):
    run = finished("bert")
    small = tmp_path / "small"
    for asked, given, words in (
        (Pruning(), texts, "nothing was asked"),
        (Pruning(channels=0.5), None, "--texts"),
        (Pruning(heads=0.5), texts, "head_dim"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            prune_run(run, small, asked, given, None, silent)
        assert caught.value.remedy
        assert not small.exists()
    with pytest.raises(ConfigError, match="there already"):
        quantize_run(run, tmp_path, "int8")
    with pytest.raises(ConfigError):
        quantize_run(tmp_path / "none", small, "int8")


@pytest.mark.parametrize(("to", "most"), [("int8", 0.25), ("int4", 0.5)])
def test_integers_may_lose_a_part_of_the_training_and_no_more(
    finished, tmp_path, monkeypatch, to, most
):
    checked, real = [], Effect.require_kept

    def check(effect, what, answer, wanted, *more):
        lost = rms(answer - wanted)
        monkeypatch.setattr(Effect, "moved", 0.99 * lost / most)
        with pytest.raises(TrainingError, match="lose what was trained"):
            real(effect, what, answer, wanted, *more)
        monkeypatch.setattr(Effect, "moved", 1.01 * lost / most)
        real(effect, what, answer, wanted, *more)
        checked.append(what)

    monkeypatch.setattr(Effect, "require_kept", check)
    quantize_run(finished("bert"), tmp_path / "small", to)
    assert len(checked) == 1
    card = (tmp_path / "small" / "README.md").read_text()
    assert "before it was made smaller: figures here are of the run's own model" in card


def test_texts_that_cannot_be_read_are_told_before_a_model_is_loaded(
    finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(steps, "open_whole", lambda *_: pytest.fail("a model was loaded"))
    run, small, teaching = finished("bert"), tmp_path / "small", Teaching(Distillation(4), 4)
    none = Texts(str(tmp_path / "none.txt"), "text")
    for refused in (
        lambda: distil_run(run, small, 0.7, none, teaching, silent),
        lambda: prune_run(run, small, Pruning("share"), none, None, silent),
        lambda: quantize_run(run, small, "int4", none, teaching, silent),
    ):
        with pytest.raises(DataError, match=r"none\.txt"):
            refused()


def test_a_type_that_loses_the_training_is_told_before_anything_is_taught(
    finished, texts, tmp_path, monkeypatch
):
    run, small, heard = finished("bert"), tmp_path / "small", []
    monkeypatch.setattr(Effect, "moved", 1e-6)
    teaching = Teaching(Distillation(2), 4)

    def told(*said):
        heard.append(said)

    for refused in (
        lambda kept: distil_run(run, small, 0.7, texts, teaching, told, dtype=kept),
        lambda kept: prune_run(run, small, Pruning("share"), texts, teaching, told, dtype=kept),
    ):
        with pytest.raises(TrainingError, match="weights in bfloat16 lose what was trained"):
            refused("bfloat16")
        assert (heard, small.exists()) == ([], False)
    distil_run(run, small, 0.7, texts, teaching, told, dtype="float32")
    assert len(heard) == 2


@pytest.mark.parametrize("damage", ["cut", "other labels", "no description", "other bits"])
def test_a_damaged_folder_is_refused(finished, tmp_path, damage):
    small = tmp_path / "small"
    quantize_run(finished("bert"), small, "int8")
    if damage == "cut":
        content = (small / "integers.safetensors").read_bytes()
        (small / "integers.safetensors").write_bytes(content[:-10])
    elif damage == "other labels":
        about = json.loads((small / "head.json").read_text())
        size = (small / "head.json").stat().st_size
        about["labels"] = about["labels"][:2]
        text = json.dumps(about)
        (small / "head.json").write_text(text + " " * (size - len(text.encode())))
    elif damage == "other bits":
        text = (small / "integers.json").read_text()
        size = len(text.encode())
        other = text.replace('"int8"', '"int4"')
        assert len(other.encode()) == size
        (small / "integers.json").write_text(other)
    else:
        (small / "integers.json").write_text(
            "{}" + " " * ((small / "integers.json").stat().st_size - 2)
        )
    with pytest.raises(CheckpointError):
        open_usable(small)


ASKED = {
    "dynamic positions": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    },
    "code of its own": {"auto_map": {"AutoConfig": "other.Config"}},
    "other files": {"configuration_files": ["config.4.json"]},
    "a larger model": {"num_hidden_layers": 10**6},
}


def test_integers_with_a_configuration_that_checkpoints_are_refused_for(finished, tmp_path):
    quantize_run(finished("llama", "causal"), tmp_path / "small", "int8")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    about = json.loads((tmp_path / "small" / "export.json").read_text())
    for name, asked in ASKED.items():
        text = json.dumps(config | asked)
        (tmp_path / "small" / "config.json").write_text(text)
        about["files"]["config.json"] = len(text)
        (tmp_path / "small" / "export.json").write_text(json.dumps(about))
        with pytest.raises(CheckpointError, match=r"not supported|code of its own|does not fit"):
            load_integers(tmp_path / "small")
            pytest.fail(name)


def test_commands_say_what_came_out(finished, texts, tmp_path):
    run, runner = finished("bert"), CliRunner()
    given = ["compress", "prune", str(run), "--out", str(tmp_path / "a"), "--share", "0.5"]
    done = runner.invoke(app, [*given, "--texts", texts.location, "--json"])
    assert done.exit_code == 0, done.output
    assert any("Wanda" in note for note in json.loads(done.stdout)["notes"])
    done = runner.invoke(
        app, ["compress", "pack", str(tmp_path / "a"), "--out", str(tmp_path / "b")]
    )
    assert done.exit_code == 0, done.output
    assert "times smaller than in float32" in done.stdout
    done = runner.invoke(app, ["predict", str(tmp_path / "a"), "--text", "card", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["label"]
