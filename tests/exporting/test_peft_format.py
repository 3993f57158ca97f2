"""An exported adapter answers, in a process without fedllm, as the run's own model does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exporting.conftest import LABELS
from safetensors.torch import load_file, save_file
from support.tiny_models import save_tiny
from transformers import AutoConfig, AutoModel

from fedllm.errors import CheckpointError, ConfigError, FedllmError, TrainingError
from fedllm.exporting import peft_format
from fedllm.exporting.export import export
from fedllm.exporting.probe import answers, make_probe
from fedllm.exporting.released import read_released
from fedllm.exporting.scripts import Use, script
from fedllm.models.contents import WEIGHTS

TEXTS = ("card cash bank", "my loan rate fee pay send lost")
# A process in which fedllm cannot be imported, whatever its path is.
BLOCKED = """
import sys, runpy
class No:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("fedllm"):
            raise ImportError("there is no fedllm here")
sys.meta_path.insert(0, No())
script = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def ran(folder, *arguments, script="use.py"):
    """What the script of a folder does, in a process without fedllm."""
    return subprocess.run(
        [sys.executable, "-I", "-c", BLOCKED, str(folder / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )


def rows_of(lines, labels=LABELS):
    """The probabilities of texts in the order of labels, of a script that shows the likeliest."""
    for line in lines:
        assert list(line["labels"].values()) == sorted(line["labels"].values(), reverse=True)
    return torch.tensor([[line["labels"][label] for label in labels] for line in lines])


def same_tags(line, rows, labels=LABELS):
    """Whether the likeliest three tags of each token are as in rows (T, C)."""
    tags = ["O", *(f"{place}-{label}" for label in labels for place in "BI")]
    for (_, shown), row in zip(line["tokens"], rows, strict=True):
        best = row.topk(3)
        assert list(shown) == [tags[place] for place in best.indices]
        torch.testing.assert_close(
            torch.tensor(list(shown.values())), best.values, atol=1e-4, rtol=0
        )


def use(folder, *arguments, script="use.py"):
    """What the script of a folder prints, line by line."""
    done = ran(folder, *arguments, script=script)
    assert done.returncode == 0, done.stderr
    assert "LOAD REPORT" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def own_shares(run, texts=TEXTS):
    """The run's own probabilities of texts, one by one, without padding."""
    released = read_released(run)
    model = released.model
    found = []
    for text in texts:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            found.append(model.module(batch).softmax(-1)[0])
    return model, found


OURS, STANDARD = "AutoModel", "AutoModelForSequenceClassification"
CLASSIFIERS = [
    ("bert", {"feature_scale": 10.0}, OURS),
    ("bert", {"feature_scale": 7.5, "pooling": "cls", "feature_center": "label_names"}, OURS),
    ("bert", {"feature_scale": 0.0}, OURS),
    ("bert", {"feature_scale": 0.0, "pooling": "cls"}, STANDARD),
    ("roberta", {"feature_scale": 0.0, "pooling": "cls"}, STANDARD),
    # What its class has before the head bends next to zero, too.
    ("electra", {"feature_scale": 0.0, "pooling": "cls"}, OURS),
    ("modernbert", {"feature_scale": 0.0, "feature_center": "zero"}, OURS),
    ("llama", {"feature_scale": 10.0, "feature_center": "label_names"}, OURS),
    # Its last norm leaves no direction in which all states are alike.
    ("llama", {"feature_scale": 0.0}, OURS),
    ("gpt2", {"feature_scale": 0.0}, STANDARD),
    ("gpt_neox", {"feature_scale": 0.0}, STANDARD),
]


@pytest.mark.parametrize(("kind", "model", "auto"), CLASSIFIERS)
def test_a_classifier_answers_the_same(finished, tmp_path, kind, model, auto):
    run = finished(kind, model=model)
    assert load_file(run / "adapter" / "head.safetensors")["bias"].abs().min() > 0
    written = export(run, tmp_path / "out", "peft")
    assert written.largest < 5e-4
    assert written.use.auto == auto


def test_the_script_of_a_classifier_runs_without_fedllm(finished, tmp_path, tiny):
    run = finished("bert", model={"feature_center": "label_names"})
    export(run, tmp_path / "out", "peft")
    _, wanted = own_shares(run)
    found = use(tmp_path / "out", tiny("bert"), *TEXTS)
    assert [line["text"] for line in found] == list(TEXTS)
    torch.testing.assert_close(rows_of(found), torch.stack(wanted), atol=1e-4, rtol=0)
    assert (wanted[0] - wanted[1]).abs().max() > 0.01


def test_a_script_that_is_misused_says_how_it_is_used(finished, tmp_path, tiny):
    """In a line, and at once."""
    run, out = finished("bert"), tmp_path / "out"
    export(run, out, "peft")
    other = shutil.copytree(tiny("bert"), tmp_path / "other")
    weights = {name: tensor + 1 for name, tensor in load_file(other / WEIGHTS).items()}
    save_file(weights, other / WEIGHTS, {"format": "pt"})
    cases = [
        ((other, "a text"), "other is not the base model that this is for"),
        ((), "usage: python use.py BASE TEXT..."),
        ((tiny("bert"),), "usage: python use.py BASE TEXT..."),
        ((tmp_path, "a text"), "is no folder of a base model"),
        ((tmp_path / "nothing", "a text"), "is no folder of a base model"),
    ]
    for given, words in cases:
        done = ran(out, *given)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "Traceback" not in done.stderr
        assert words in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_base_that_fits_not_is_told_in_a_line(finished, tmp_path, tiny):
    for lora in ({}, {"rank": 0, "last_layers": None}):
        out = tmp_path / f"out{len(lora)}"
        export(finished("bert", name=f"run{len(lora)}", lora=lora), out, "peft")
        # As where it is not known which base is the right one.
        text = (out / "use.py").read_text()
        assert text.count("if digest.hexdigest() != ") == 1
        (out / "use.py").write_text(text.replace("if digest.hexdigest() != ", "if not "))
        done = ran(out, save_wide(tmp_path) if lora else tiny("modernbert"), "a text")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "Traceback" not in done.stderr
        told = done.stderr.strip().splitlines()[-1]
        assert "cannot be loaded, or is not what this is for" in told


def save_wide(folder):
    """A base of the same kind whose states are wider than the head."""
    made = save_tiny("bert", folder / "wide")
    config = json.loads((made / "config.json").read_text()) | {"hidden_size": 32}
    (made / "config.json").write_text(json.dumps(config))
    AutoModel.from_config(AutoConfig.from_pretrained(made)).save_pretrained(made)
    return made


@pytest.mark.slow
def test_a_base_of_a_package_is_found_without_fedllm(finished, tmp_path, tiny, monkeypatch):
    run, out = finished("bert"), tmp_path / "out"
    location = "package:a_package_of_a_base/model"
    toml = run / "run.toml"
    toml.write_text(toml.read_text().replace(str(tiny("bert")), location))
    (tmp_path / "a_package_of_a_base").mkdir()
    (tmp_path / "a_package_of_a_base" / "__init__.py").touch()
    (tmp_path / "a_package_of_a_base" / "model").symlink_to(tiny("bert"))
    monkeypatch.syspath_prepend(tmp_path)
    export(run, out, "peft")
    assert f"or {location}." in (out / "use.py").read_text()
    (told,) = ran(out, location, "a text").stderr.strip().splitlines()
    assert told.endswith("a_package_of_a_base, which holds the base model, is not installed")
    # A process by itself sees no path of this one.
    script = (out / "use.py").read_text()
    (out / "use.py").write_text(f"import sys\nsys.path.append({str(tmp_path)!r})\n{script}")
    _, wanted = own_shares(run)
    found = rows_of(use(out, location, *TEXTS))
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=0)


def test_words_of_a_run_are_no_program(finished):
    use, model = Use("AutoModel"), read_released(finished("bert"))
    location = 'package:a/b"""\nraise SystemExit("""'
    config = model.run.config
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": location})})
    assert "SystemExit" not in script(model.model, config, use)


@pytest.mark.slow
def test_the_script_of_a_language_model_runs_without_fedllm(finished, tmp_path, tiny):
    run = finished("qwen2", "instruction")
    export(run, tmp_path / "out", "peft")
    released = read_released(run)
    # The model has 64 positions; the template takes four.
    prompts = ("card cash", "cash " * 56, "card " * 70)
    done = ran(tmp_path / "out", tiny("qwen2"), *prompts)
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().endswith("of 74 tokens leaves no room in a model of 64")
    line, late = map(json.loads, done.stdout.splitlines())
    assert 0 < len(late["answer"].split()) <= 64 - 60
    tokenizer, module = released.model.tokenizer, released.model.module
    from fedllm.data.template import end_token_id
    from fedllm.tasks.prompting import TemplatedPrompting

    ids = torch.tensor([TemplatedPrompting(tokenizer).prompt("card cash", None).ids])
    start, end = ids.shape[1], end_token_id(tokenizer)
    for _ in range(8):
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            following = module.backbone(**batch).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, following[:, None]], 1)
        if int(following) == end:
            break
    mine = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert line["prompt"] == "card cash"
    assert line["answer"].startswith(mine)
    assert mine


@pytest.mark.parametrize(
    ("kind", "scale", "auto"),
    [
        ("bert", 0.0, "AutoModelForTokenClassification"),
        ("roberta", 0.0, "AutoModelForTokenClassification"),
        ("qwen2", 0.0, "AutoModelForTokenClassification"),
        # It has a layer and a norm of its own before the head.
        ("modernbert", 0.0, "AutoModel"),
        ("bert", 10.0, "AutoModel"),
    ],
)
def test_tags_of_tokens_come_from_a_standard_head_where_there_is_one(
    finished, tmp_path, kind, scale, auto
):
    run = finished(kind, "token_classification", model={"feature_scale": scale})
    written = export(run, tmp_path / "out", "peft")
    assert written.use.auto == auto
    assert written.largest < 5e-4


def named_like_the_base(folder: Path, out: Path, base: Path) -> None:
    """Make the name by which an adapter knows its base lead to the base's folder."""
    name = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert "/" not in name
    (folder / name).symlink_to(base)


def test_pefts_own_class_loads_a_standard_head(finished, tmp_path, tiny, monkeypatch):
    from peft import AutoPeftModelForTokenClassification

    run = finished("bert", "token_classification", model={"feature_scale": 0.0})
    out = tmp_path / "out"
    export(run, out, "peft")
    named_like_the_base(tmp_path, out, tiny("bert"))
    monkeypatch.chdir(tmp_path)
    loaded = AutoPeftModelForTokenClassification.from_pretrained(
        str(out), num_labels=7, dtype=torch.float32
    ).eval()
    released = read_released(run)
    probe = make_probe(released, seed=5)
    with torch.no_grad():
        found = loaded(**probe.inputs).logits[probe.mask.bool()]
    torch.testing.assert_close(found, answers(released, probe), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "pooling", "saved"),
    [
        ("bert", "cls", ["bert.pooler", "classifier"]),
        ("roberta", "cls", ["classifier"]),
        ("gpt2", "mean", ["score"]),
    ],
)
def test_pefts_own_class_loads_a_head_with_a_bias(
    finished, tmp_path, tiny, monkeypatch, kind, pooling, saved
):
    """Where the class has a layer before its head, and where its head has no bias."""
    from peft import AutoPeftModelForSequenceClassification

    run = finished(kind, model={"feature_scale": 0.0, "pooling": pooling})
    out = tmp_path / "out"
    written = export(run, out, "peft")
    assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] == saved
    assert written.notes[0] in (out / "README.md").read_text()
    named_like_the_base(tmp_path, out, tiny(kind))
    monkeypatch.chdir(tmp_path)
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(
        str(out), num_labels=3, dtype=torch.float32
    ).eval()
    released = read_released(run)
    probe = make_probe(released, seed=5)
    wanted = answers(released, probe)
    with torch.no_grad():
        found = loaded(**probe.inputs).logits
        loaded.base_model.disable_adapter_layers()
        plain = loaded.base_model(**probe.inputs).logits
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
    assert (plain - wanted).abs().max() > 0.01


@pytest.mark.parametrize("method", ["lora", "ffa", "rolora", "fedsvd", "core"])
def test_pefts_own_class_loads_a_language_model(finished, tmp_path, tiny, monkeypatch, method):
    from peft import AutoPeftModelForCausalLM

    run, out = finished("llama", "causal", lora={"method": method}), tmp_path / "out"
    export(run, out, "peft")
    assert not (out / "core.safetensors").exists()
    named_like_the_base(tmp_path, out, tiny("llama"))
    monkeypatch.chdir(tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(out), dtype=torch.float32).eval()
    released = read_released(run)
    probe = make_probe(released, seed=5)
    with torch.no_grad():
        found = loaded(**probe.inputs).logits[:, :-1][probe.mask[:, 1:].bool()]
        loaded.disable_adapter_layers()
        plain = loaded(**probe.inputs).logits[:, :-1][probe.mask[:, 1:].bool()]
    wanted = answers(released, probe)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (plain - wanted).abs().max() > 0.01


def test_pefts_own_class_loads_a_repository_from_the_cache(finished, tmp_path, tiny):
    run = finished("llama", "causal", card={"base_model": "somebody/tiny-llama"})
    export(run, tmp_path / "out", "peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somebody/tiny-llama"


def test_an_encoder_decoder_is_loaded_too(finished, tmp_path):
    written = export(finished("t5", "instruction"), tmp_path / "out", "peft")
    assert written.use.auto == "AutoModelForSeq2SeqLM"


@pytest.mark.slow
def test_the_script_of_tags_runs_without_fedllm(finished, tmp_path, tiny):
    for scale in (0.0, 10.0):
        run = finished(
            "bert", "token_classification", f"run{scale}", model={"feature_scale": scale}
        )
        out = tmp_path / f"out{scale}"
        export(run, out, "peft")
        _, wanted = own_shares(run)
        for line, rows in zip(use(out, tiny("bert"), *TEXTS), wanted, strict=True):
            same_tags(line, rows)


@pytest.mark.slow
def test_the_script_of_a_standard_classifier_runs_without_fedllm(finished, tmp_path, tiny):
    run, out = finished("bert", model={"feature_scale": 0.0, "pooling": "cls"}), tmp_path / "out"
    assert not export(run, out, "peft").use.plain_head
    _, wanted = own_shares(run)
    found = rows_of(use(out, tiny("bert"), *TEXTS))
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_head_alone_is_exported(finished, tmp_path, tiny):
    run = finished("bert", lora={"rank": 0, "last_layers": None})
    export(run, tmp_path / "out", "peft")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    _, wanted = own_shares(run)
    found = use(tmp_path / "out", tiny("bert"), *TEXTS)
    torch.testing.assert_close(rows_of(found), torch.stack(wanted), atol=1e-4, rtol=0)


def test_no_file_names_a_folder_of_this_machine(finished, tmp_path):
    for number, (kind, task) in enumerate(
        [("bert", "classification"), ("llama", "instruction"), ("bert", "token_classification")]
    ):
        run = finished(kind, task, f"run{number}", model={"feature_scale": 0.0})
        export(run, tmp_path / f"out{number}", "peft")
        for folder in (run / "adapter", tmp_path / f"out{number}"):
            for path in folder.iterdir():
                content = path.read_bytes()
                assert str(tmp_path).encode() not in content, path
                assert b"pytest-of" not in content, path
                assert b"secret" not in content, path


def test_what_trained_the_base_itself_has_no_format_of_pefts(finished, tmp_path):
    for lora in ({"method": "bitfit"}, {"method": "layers", "last_layers": 1}):
        run = finished("bert", name=lora["method"], lora=lora)
        with pytest.raises(ConfigError, match=r"(?s)no format.*--format merged"):
            export(run, tmp_path / "out", "peft")
        assert not (tmp_path / "out").exists()


def test_a_quantised_run_is_put_on_plain_weights_and_that_is_said(finished, tmp_path):
    run = finished("llama", "causal", model={"quantization": "int8"})
    written = export(run, tmp_path / "out", "peft")
    assert "int8" in written.notes[-1]
    assert "int8" in (tmp_path / "out" / "README.md").read_text()


def test_labels_that_do_not_fit_the_head_are_refused(finished, tmp_path):
    run = finished("bert")
    path = run / "adapter" / "shared_model.json"
    told = json.loads(path.read_text())
    for labels, words in ((told["labels"][:2], "2 labels need 2"), (["a"] * 3, "a label twice")):
        path.write_text(json.dumps(told | {"labels": labels}))
        with pytest.raises(CheckpointError, match=words):
            export(run, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()


# --- what is wrong ---------------------------------------------------------------------------


def test_an_adapter_of_another_base_is_refused(finished, tmp_path, tiny):
    with pytest.raises(CheckpointError, match=r"(?s)another base model.*--base"):
        export(finished("bert"), tmp_path / "out", "peft", base=str(tiny("electra")))


def test_a_moved_base_is_asked_for_and_taken(finished, tmp_path, tiny):
    import shutil

    shutil.copytree(tiny("bert"), tmp_path / "before")
    run = finished("bert", base=tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(ConfigError, match=r"(?s)not on this machine where it was.*before.*--base"):
        export(run, tmp_path / "out", "peft")
    export(run, tmp_path / "out", "peft", base=str(tmp_path / "after"))


def test_a_run_without_an_adapter_is_refused(finished, tmp_path):
    run = finished()
    (run / "adapter" / "shared_model.json").unlink()
    with pytest.raises(ConfigError, match="holds no adapter"):
        export(run, tmp_path / "out", "peft")
    (run / "summary.json").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        export(run, tmp_path / "out", "peft")


def test_a_folder_that_is_there_is_left_alone(finished, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        export(finished(), tmp_path / "out", "peft")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["kept"]


def test_an_adapter_that_is_damaged_is_refused(finished, tmp_path):
    run = finished()
    path = run / "adapter" / "adapter_model.safetensors"
    save_file({k: v * float("nan") for k, v in load_file(path).items()}, path)
    with pytest.raises(FedllmError, match="NaN"):
        export(run, tmp_path / "out", "peft")


def test_an_export_that_answers_otherwise_does_not_stand(finished, tmp_path, monkeypatch):
    """The check is not for show: another scale, or no adapter, is found out."""
    read = peft_format.written_head

    def doubled(folder, about):
        head = read(folder, about)
        return type(head)(head.tensors, head.pooling, 2 * head.scale)

    monkeypatch.setattr(peft_format, "written_head", doubled)
    run = finished("bert")
    with pytest.raises(TrainingError, match="answers otherwise"):
        export(run, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
