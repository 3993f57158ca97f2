"""The report really measures each folder: what is the same, what is worse, what is kept."""

from __future__ import annotations

import json
import shutil

import pytest
from exporting.conftest import LABELS, finished, tiny
from safetensors.torch import load_file, save_file
from support.hub_cache import hub
from support.tiny_models import WORDS
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.compression.packing import pack, unpack
from fedllm.compression.report import costs, opened
from fedllm.compression.report import measure as measure_module
from fedllm.compression.report.folders import read_original, read_variants
from fedllm.compression.report.measure import measure
from fedllm.compression.report.page import write_report
from fedllm.compression.steps import Pruning, prune_run, quantize_run
from fedllm.compression.whole import open_whole
from fedllm.errors import CheckpointError, ConfigError, DataError, TrainingError
from fedllm.exporting.export import export
from fedllm.locks import in_turn
from fedllm.serving.usable import open_usable

__all__ = ["finished", "hub", "tiny"]

COUNT = 24


@pytest.fixture
def no_process(monkeypatch, tmp_path):
    """A system that does not tell memory; starting a process takes longer than all else here."""
    monkeypatch.setattr(costs, "_STATUS", tmp_path / "none")
    # How long tiny models take is nobody's question.
    monkeypatch.setattr(costs, "_PASSES", 1)
    for module in (opened, measure_module):
        monkeypatch.setattr(module, "NEW_TOKENS", 3)


def silent(*_):
    pass


def words(number: int) -> str:
    return " ".join(WORDS[(number * j + number) % 12] for j in range(1, 7))


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def labelled_as_by(run, path):
    """Texts with the labels that the run's model gives them, but for every fourth."""
    texts = [words(number) for number in range(COUNT)]
    said = [one.answer for one in open_usable(run).predicting.predict(texts)]
    wrong = [LABELS[(LABELS.index(label) + (n % 4 == 0)) % 3] for n, label in enumerate(said)]
    return write(path, [{"text": t, "label": w} for t, w in zip(texts, wrong, strict=True)])


def damaged(folder, new, tensors, change):
    """A copy of a folder whose tensors in one file were changed."""
    shutil.copytree(folder, new)
    values = load_file(new / tensors)
    change(values)
    save_file(values, new / tensors, {"format": "pt"})
    return new


def reported(original, variants, records, out, attack=None):
    heard = []
    found = read_original(original, None)
    told = measure(
        found,
        read_variants(found, variants),
        records,
        out,
        attack,
        lambda what, done, of: heard.append(what),
    )
    return told, heard


def by_name(report):
    return {model.name: model.figures for model in report.models}


def test_each_folder_is_measured_itself(finished, tmp_path, no_process):
    run = finished("bert")
    records = labelled_as_by(run, tmp_path / "records.jsonl")
    export(run, tmp_path / "merged", "merged")
    quantize_run(run, tmp_path / "q8", "int8")
    prune_run(
        run, tmp_path / "pruned", Pruning("share", 0.9, channels=0.5), texts(tmp_path), None, silent
    )
    damaged(
        tmp_path / "merged",
        tmp_path / "turned",
        "head.safetensors",
        lambda t: [v.neg_() for v in t.values()],
    )
    names = ["merged", "turned", "q8", "pruned"]
    told, _ = reported(run, [tmp_path / name for name in names], records, tmp_path / "out")
    found = by_name(told)
    run_figures, same, turned = found["run"], found["merged"], found["turned"]
    assert run_figures.quality["accuracy"] == pytest.approx(0.75)
    assert run_figures.differences == {}
    # The same weights give the same answers, and a difference of nothing for certain.
    assert same.same_answers == 1
    assert {(d.value, d.low, d.high) for d in same.differences.values()} == {(0.0, 0.0, 0.0)}
    assert (same.weights, same.operations) == (run_figures.weights, run_figures.operations)
    # A head that is turned around holds likeliest what was least likely.
    assert turned.same_answers == 0
    assert turned.differences["accuracy"].high < 0 < turned.differences["loss"].low
    # Integers: as many products, fewer bytes. Pruned: fewer of both.
    assert found["q8"].operations == run_figures.operations
    assert found["q8"].tensor_bytes < 0.7 * run_figures.tensor_bytes
    assert found["q8"].weights == run_figures.weights
    assert found["pruned"].operations < run_figures.operations
    assert found["pruned"].weights_not_zero < 0.9 * found["pruned"].weights
    assert [one.texts for one in run_figures.latencies] == [1, 16]
    assert all(one.times_faster == 1 for one in run_figures.latencies)
    assert all(m.memory is None for m in found.values())


def texts(tmp_path):
    from fedllm.compression.steps import Texts

    (tmp_path / "texts.txt").write_text("\n".join(words(n) for n in range(20)))
    return Texts(str(tmp_path / "texts.txt"), "text")


def test_a_decoder_is_judged_by_its_tokens(finished, tmp_path, no_process):
    run = finished("llama", "instruction", trained=0.05)
    lines = [{"prompt": words(n), "response": words(n + 3)} for n in range(COUNT)]
    records = write(tmp_path / "records.jsonl", lines)
    export(run, tmp_path / "merged", "merged")
    quantize_run(run, tmp_path / "q8", "int8")

    def shuffled(tensors):
        name = next(name for name in tensors if "embed_tokens" in name)
        tensors[name] = tensors[name].flip(0).contiguous()

    damaged(tmp_path / "merged", tmp_path / "other", "model.safetensors", shuffled)
    given = [tmp_path / name for name in ("q8", "other")]
    # The original as a whole model: its columns are those of the run.
    told, _ = reported(tmp_path / "merged", given, records, tmp_path / "out")
    found = by_name(told)
    assert told.new_tokens == 3
    assert told.measures == ("loss",)
    assert found["merged"].same_answers == 1
    assert found["other"].same_answers < found["q8"].same_answers
    lost = {name: abs(found[name].differences["loss"].value) for name in ("q8", "other")}
    assert lost["other"] > lost["q8"] > 0
    assert found["q8"].operations == found["merged"].operations


@pytest.mark.slow
def test_spans_are_compared_too(finished, tmp_path, no_process):
    run = finished("bert", "token_classification", model={"feature_scale": 0.0})
    lines = [
        {"text": words(n), "spans": [{"start": 0, "end": 4, "label": "card"}]} for n in range(COUNT)
    ]
    records = write(tmp_path / "records.jsonl", lines)
    quantize_run(run, tmp_path / "f16", "float16")
    told, _ = reported(run, [tmp_path / "f16"], records, tmp_path / "out")
    assert told.measures == ("f1", "recall", "loss")
    assert by_name(told)["f16"].same_answers > 0.8


def test_what_was_measured_is_not_measured_again(finished, tmp_path, no_process):
    run = finished("bert")
    records = labelled_as_by(run, tmp_path / "records.jsonl")
    quantize_run(run, tmp_path / "a", "float16")
    quantize_run(run, tmp_path / "b", "bfloat16")
    given, out = [tmp_path / "a", tmp_path / "b"], tmp_path / "out"
    out.mkdir()
    with in_turn(out / ".lock"), pytest.raises(ConfigError, match="another report"):
        reported(run, given, records, out)
    broken = tmp_path / "b" / "model.safetensors"
    whole = broken.read_bytes()
    broken.write_bytes(b"\xff" * len(whole))
    with pytest.raises(CheckpointError):
        reported(run, given, records, out)
    broken.write_bytes(whole)
    first, heard = reported(run, given, records, out)
    # The original is judged once more to compare b with, and the first one is not.
    assert heard.count("run: records") == heard.count("b: records") == COUNT
    assert "a: records" not in heard
    again, heard = reported(run, given, records, out)
    assert set(heard) == {f"{name}: measured" for name in ("run", "a", "b")}
    assert again.models == first.models
    # Other records are another report.
    other = tmp_path / "other.jsonl"
    other.write_text("".join((tmp_path / "records.jsonl").read_text().splitlines(True)[:20]))
    (out / ".unpacked.killed" / "0").mkdir(parents=True)
    third, heard = reported(run, given, str(other), out)
    assert "a: loading" in heard
    assert third.records == 20
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".lock"]


def test_a_packed_folder_is_measured_as_it_unpacks_and_sized_as_it_lies(
    finished, tmp_path, no_process
):
    run = finished("bert")
    records = labelled_as_by(run, tmp_path / "records.jsonl")
    export(run, tmp_path / "merged", "merged")
    pack(tmp_path / "merged", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    given = [tmp_path / "packed", tmp_path / "again"]
    told, _ = reported(tmp_path / "merged", given, records, tmp_path / "out")
    packed, again = by_name(told)["packed"], by_name(told)["again"]
    assert (packed.packed, again.packed) == (True, False)
    assert packed.quality == again.quality
    size = sum(path.stat().st_size for path in (tmp_path / "packed").iterdir())
    assert packed.disk_bytes == size
    assert again.disk_bytes == sum(p.stat().st_size for p in (tmp_path / "again").iterdir())
    with pytest.raises(ConfigError, match="is packed"):
        read_original(tmp_path / "packed", None)


def test_what_cannot_be_compared_is_refused_by_name(finished, tmp_path, no_process):
    run, spans = finished("bert"), finished("bert", "token_classification", name="spans")
    records = labelled_as_by(run, tmp_path / "records.jsonl")
    export(run, tmp_path / "merged", "merged")
    export(spans, tmp_path / "of-spans", "merged", dtype="float32")
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "merged", other)
    about = json.loads((other / "head.json").read_text())
    size = (other / "head.json").stat().st_size
    about["labels"] = about["labels"][::-1]
    (other / "head.json").write_text(json.dumps(about).ljust(size)[:size])
    original = read_original(run, None)
    for folder, words_ in (
        (tmp_path / "of-spans", "for token_classification"),
        (other, "other labels .*order"),
        (run, "named twice"),
        (spans, "no whole model"),
        (tmp_path / "none", "no whole model"),
    ):
        with pytest.raises(ConfigError, match=words_) as caught:
            read_variants(original, [folder])
        assert caught.value.remedy
    with pytest.raises(ConfigError, match="named twice"):
        read_variants(original, [tmp_path / "merged", tmp_path / "merged" / "." / ".." / "merged"])
    with pytest.raises(ConfigError, match="whole model"):
        read_original(tmp_path / "merged", str(tmp_path))
    with pytest.raises(ConfigError, match="neither a finished run"):
        read_original(tmp_path, None)
    few = write(tmp_path / "few.jsonl", [{"text": "card", "label": LABELS[0]}] * 3)
    with pytest.raises(DataError, match="3 records"):
        reported(run, [tmp_path / "merged"], few, tmp_path / "out")
    foreign = write(tmp_path / "foreign.jsonl", [{"text": "card", "label": "x"}] * 20)
    with pytest.raises(DataError, match="public"):
        reported(run, [tmp_path / "merged"], foreign, tmp_path / "out")
    quantize_run(run, tmp_path / "q8", "int8")
    nan = damaged(
        tmp_path / "q8",
        tmp_path / "nan",
        "integers.safetensors",
        lambda t: [v.fill_(float("nan")) for n, v in t.items() if n.endswith("scales")],
    )
    with pytest.raises(TrainingError, match="nan answers with numbers that are none"):
        reported(run, [nan], records, tmp_path / "out")


def test_a_base_in_the_hubs_cache_is_found(finished, tiny, hub, tmp_path):
    shutil.copytree(tiny("bert"), tmp_path / "base")
    run = finished("bert", base=tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "moved")
    snapshot = hub(tmp_path / "moved")
    assert read_original(run, "north/tiny").config.model.path == str(snapshot)
    assert open_whole(run, "north/tiny").released.base == snapshot
    with pytest.raises(ConfigError, match="not on this machine"):
        read_original(run, None)


def test_folders_of_one_name_are_told_apart(finished, tmp_path):
    run = finished("bert")
    for place in ("x", "y"):
        export(run, tmp_path / place / "small", "merged")
    found = read_variants(
        read_original(run, None), [tmp_path / "x" / "small", tmp_path / "y" / "small"]
    )
    assert [model.name for model in found] == [str(tmp_path / p / "small") for p in ("x", "y")]


def test_files_say_what_was_found_and_quote_no_name_as_code(finished, tmp_path, no_process):
    run = finished("bert")
    records = labelled_as_by(run, tmp_path / "records.jsonl")
    hostile = tmp_path / "<script>|\x1b[31m"
    quantize_run(run, hostile, "float16")
    told, _ = reported(run, [hostile], records, tmp_path / "out")
    page = write_report(told, tmp_path / "out").read_text()
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("<svg role") == 2
    assert not any(loads in page for loads in (" src=", "<link", "url(http", "@import"))
    table = (tmp_path / "out" / "table.md").read_text()
    bars = {line.replace("\\|", "").count("|") for line in table.splitlines() if line[:1] == "|"}
    assert len(bars) == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["models"][0]["name"] == "run"


@pytest.mark.slow
def test_the_command_measures_memory_in_a_process_of_its_own(finished, tmp_path):
    run = finished("bert")
    records = labelled_as_by(run, tmp_path / "records.jsonl")
    quantize_run(run, tmp_path / "q8", "int8")
    given = ["compress", "report", str(run), str(tmp_path / "q8"), "--records", records]
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    for model in json.loads(done.stdout)["models"]:
        memory = model["figures"]["memory"]
        assert memory["peak_bytes"] >= memory["held_bytes"] > memory["libraries_bytes"] > 50 << 20
    assert (tmp_path / "out" / "report.html").exists()
