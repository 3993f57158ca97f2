"""A run from text to checkpoint, and its exact continuation after a kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from fedllm.errors import CheckpointError, ConfigError, DataError, TrainingError
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.run import run_pretraining
from fedllm.randomness import RandomStream
from fedllm.runs.observer import Observer

SENTENCE = "the cat sat on a mat and saw one red fox under two old trees by night"
WORDS = SENTENCE.split()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    picks = RandomStream.seeded(0).below(len(WORDS), 400 * 12).reshape(400, 12)
    rows = [{"text": " ".join(WORDS[i] for i in row) + "."} for row in picks]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def config(corpus: Path, **training) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "name": "tiny",
            "data": {"train": str(corpus), "held_out": 0.1},
            "tokenizer": {"vocabulary": 320},
            "model": {"layers": 1, "width": 32, "heads": 2, "inner": 64},
            "training": {
                "tokens": 30 * 4 * 16,
                "sequence_length": 16,
                "batch_rows": 4,
                "threads": 1,
                **training,
            },
            "report": {
                "log_every": 1,
                "evaluate_every": 15,
                "checkpoint_every": 5,
                "prompts": ["the cat"],
                "sample_tokens": 4,
            },
        }
    )


def curve(out: Path) -> list[dict]:
    volatile = {"seconds", "cpu_seconds", "tokens_per_s"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in volatile} for line in lines]


@pytest.fixture(scope="module")
def whole_run(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run_pretraining(config(corpus), out)
    return out


def test_the_checkpoint_loads_and_the_held_out_measure_improved(whole_run):
    model = AutoModelForCausalLM.from_pretrained(whole_run / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(whole_run / "model", local_files_only=True)
    turns = [{"role": "user", "content": "the cat"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|begin|><|user|>the cat<|assistant|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    lines = curve(whole_run)
    assert lines[-1]["bits_per_byte"] < 0.8 * lines[0]["bits_per_byte"]
    assert "the cat" in lines[-1]["samples"]
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["metrics"]["bits_per_byte"] == lines[-1]["bits_per_byte"]
    assert summary["model"]["parameters"] == model.num_parameters()


def test_the_model_card_names_data_weights_and_curve(whole_run, corpus):
    card = (whole_run / "model" / "README.md").read_text()
    summary = json.loads((whole_run / "summary.json").read_text())
    weights = hashlib.sha256((whole_run / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert weights == summary["model"]["sha256"]
    assert weights in card
    assert summary["data"]["fingerprint"] in card
    assert hashlib.sha256(corpus.read_bytes()).hexdigest() in card
    assert f"{summary['metrics']['bits_per_byte']:.4f}" in card


DIES_AT_STEP_8 = """
import os, pathlib, signal, sys
from fedllm.pretraining.config import PretrainConfig
from fedllm.runs.observer import Observer
from fedllm.pretraining.run import run_pretraining

class Dies(Observer):
    def advanced(self, progress):
        if progress.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

config = PretrainConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text())
run_pretraining(config, pathlib.Path(sys.argv[2]), [Dies()])
"""


def test_a_killed_run_follows_the_same_curve(corpus, whole_run, tmp_path):
    out = tmp_path / "run"
    settings = tmp_path / "config.json"
    settings.write_text(config(corpus).model_dump_json())
    command = [sys.executable, "-c", DIES_AT_STEP_8, str(settings), str(out)]
    died = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert 5 < curve_step(out / "metrics.jsonl") < 10, "between two checkpoints"
    run_pretraining(config(corpus), out, resume=True)
    assert curve(out) == curve(whole_run)
    assert weights(out) == weights(whole_run)


def curve_step(metrics: Path) -> int:
    complete = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
    return json.loads(complete[-1])["step"]


def weights(out: Path) -> str:
    return json.loads((out / "summary.json").read_text())["model"]["sha256"]


def test_a_damaged_newest_checkpoint_is_passed_over(corpus, whole_run, tmp_path):
    out = tmp_path / "run"
    run_pretraining(config(corpus), out)
    newest = sorted((out / "checkpoints").iterdir())[-1] / "__0_0.distcp"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (out / "summary.json").unlink()
    heard = Heard()
    run_pretraining(config(corpus), out, [heard], resume=True)
    assert "going on after step 25" in heard.messages
    assert curve(out) == curve(whole_run)
    assert weights(out) == weights(whole_run)


def test_a_run_does_not_go_on_with_other_text(corpus, tmp_path):
    text, out = tmp_path / "corpus.jsonl", tmp_path / "run"
    text.write_bytes(corpus.read_bytes())
    run_pretraining(config(text, tokens=640), out)
    (out / "summary.json").unlink()
    # Touched, but the same.
    text.write_bytes(corpus.read_bytes())
    run_pretraining(config(text, tokens=640), out, resume=True)
    (out / "summary.json").unlink()
    text.write_bytes(corpus.read_bytes().replace(b"cat", b"dog"))
    with pytest.raises(CheckpointError, match="not what it was"):
        run_pretraining(config(text, tokens=640), out, resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_failed_at_its_text_goes_on_when_that_is_mended(corpus, tmp_path, resume):
    text, out = tmp_path / "corpus.jsonl", tmp_path / "run"
    text.write_bytes(corpus.read_bytes() + b"{not json\n")
    with pytest.raises(DataError):
        run_pretraining(config(text, tokens=128), out)
    text.write_bytes(corpus.read_bytes())
    run_pretraining(config(text, tokens=128, learning_rate=1e-3), out, resume=resume)
    assert (out / "summary.json").exists()


class Heard(Observer):
    """Keeps the messages of a run."""

    def __init__(self):
        self.messages = []

    def note(self, text):
        self.messages.append(text)


def test_microbatches_change_memory_and_not_the_result(corpus, whole_run, tmp_path):
    run_pretraining(config(corpus, microbatch_rows=1, precision="fp32", tokens=640), tmp_path / "a")
    run_pretraining(config(corpus, precision="fp32", tokens=640), tmp_path / "b")
    small, large = curve(tmp_path / "a"), curve(tmp_path / "b")
    assert [s["loss"] for s in small[1:]] == pytest.approx([s["loss"] for s in large[1:]], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_compiling_changes_speed_and_not_the_result(corpus, tmp_path, architecture):
    values = config(corpus, precision="fp32", tokens=10 * 8 * 24, sequence_length=24).model_dump()
    values["objective"] = {"llama": "causal", "bert": "masked", "t5": "span"}[architecture]
    values["model"] |= {"architecture": architecture}
    values["tokenizer"]["vocabulary"] = 360
    values["report"]["prompts"] = ()
    out = {True: tmp_path / "compiled", False: tmp_path / "plain"}
    for compiled, folder in out.items():
        values["training"]["compile"] = compiled
        run_pretraining(PretrainConfig.model_validate(values), folder)
    compiled, plain = (curve(out[c]) for c in (True, False))
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in compiled[1:]] == pytest.approx(
            [line[key] for line in plain[1:]], rel=1e-3
        )
    assert weights(out[True]) != weights(out[False])  # another order of sums: it did compile


def test_autocast_rounds_matrix_products_and_keeps_parameters_whole(corpus, tmp_path, monkeypatch):
    from fedllm.pretraining.objectives import NextToken

    honest, seen = NextToken.forward, set()

    def watched(self, batch):
        product = self.model.model.layers[0].mlp.up_proj
        with_hook = product.register_forward_hook(lambda _, __, result: seen.add(result.dtype))
        losses = honest(self, batch)
        with_hook.remove()
        assert losses.dtype == torch.float32
        assert {p.dtype for p in self.parameters()} == {torch.float32}
        return losses

    monkeypatch.setattr(NextToken, "forward", watched)
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        seen.clear()
        run_pretraining(config(corpus, precision=precision, tokens=128), tmp_path / precision)
        assert seen == {expected}


def test_a_run_folder_is_not_overwritten(corpus, whole_run):
    with pytest.raises(ConfigError, match="holds a run already"):
        run_pretraining(config(corpus), whole_run)
    with pytest.raises(ConfigError, match="differs"):
        run_pretraining(config(corpus, learning_rate=0.5), whole_run, resume=True)


def test_divergence_stops_and_keeps_the_last_good_checkpoint(
    corpus, whole_run, tmp_path, monkeypatch
):
    from fedllm.pretraining.objectives import NextToken

    honest, calls = NextToken.forward, []

    def broken(self, batch):
        calls.append(torch.is_grad_enabled())
        loss = honest(self, batch)
        return loss * float("nan") if sum(calls) > 12 else loss

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(NextToken, "forward", broken)
        with pytest.raises(TrainingError, match="diverged at step 13"):
            run_pretraining(config(corpus), out)
    names = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000010"]
    run_pretraining(config(corpus), out, resume=True)
    assert curve(out) == curve(whole_run)


def test_a_learning_rate_that_is_far_too_high_is_noticed(corpus, tmp_path):
    wild = config(corpus, learning_rate=10.0, optimizer="adamw", clipping_norm=1e9)
    with pytest.raises(TrainingError, match=r"diverged at step \d+: loss \d"):
        run_pretraining(wild, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_continued_pretraining_begins_where_the_checkpoint_ended(corpus, whole_run, tmp_path):
    values = config(corpus, tokens=5 * 64).model_dump()
    values["model"] = {"start": str(whole_run / "model")}
    out = tmp_path / "run"
    run_pretraining(PretrainConfig.model_validate(values), out)
    # The first run measured in bf16 too, on the same held-out documents.
    assert curve(out)[0]["bits_per_byte"] == pytest.approx(curve(whole_run)[-1]["bits_per_byte"])
    tokenizers = [(p / "tokenizer" / "tokenizer.json").read_text() for p in (out, whole_run)]
    assert tokenizers[0] == tokenizers[1]
    values["model"] = {"start": str(tmp_path)}
    values["tokenizer"] = {"path": str(whole_run / "model")}
    with pytest.raises(CheckpointError, match="holds no llama model"):
        run_pretraining(PretrainConfig.model_validate(values), tmp_path / "other")
    values["model"] = {"start": str(whole_run / "model")}
    values["training"]["sequence_length"] = 32
    with pytest.raises(CheckpointError, match="more than the 16 positions"):
        run_pretraining(PretrainConfig.model_validate(values), tmp_path / "longer")


@pytest.mark.parametrize(
    ("architecture", "objective", "kind", "measure"),
    [
        ("bert", "masked", "wordpiece", "held_out_masked_loss"),
        ("t5", "span", "bpe", "held_out_loss"),
    ],
)
def test_encoder_and_encoder_decoder_learn(
    corpus, tmp_path, architecture, objective, kind, measure
):
    values = config(corpus, sequence_length=24, batch_rows=8, tokens=24 * 8 * 60).model_dump()
    values["objective"] = objective
    values["model"] = {"architecture": architecture, "layers": 1, "width": 32, "heads": 2}
    values["tokenizer"] = {"kind": kind, "vocabulary": 360}
    values["report"] = {"evaluate_every": 30, "checkpoint_every": 30}
    out = tmp_path / "run"
    run_pretraining(PretrainConfig.model_validate(values), out)
    lines = curve(out)
    assert lines[-1][measure] < 0.8 * lines[0][measure]
    kinds = {"bert": AutoModelForPreTraining, "t5": AutoModelForSeq2SeqLM}
    kinds[architecture].from_pretrained(out / "model", local_files_only=True)
    AutoTokenizer.from_pretrained(out / "model", local_files_only=True)


def test_an_encoder_decoder_made_here_is_a_base_for_instructions(corpus, tmp_path):
    from fedllm.config import RunConfig, parse
    from fedllm.mechanisms import LocalSettings
    from fedllm.tasks import task_of
    from fedllm.tasks.answering import Answering
    from fedllm.training.evaluate import evaluate
    from fedllm.training.local import train_locally

    values = config(corpus, sequence_length=24, tokens=24 * 4 * 10).model_dump()
    values["objective"] = "span"
    values["model"] = {"architecture": "t5", "layers": 2, "width": 32, "heads": 2}
    values["tokenizer"] = {"vocabulary": 360}
    values["report"] = {"evaluate_every": 10, "checkpoint_every": 10}
    folder = run_pretraining(PretrainConfig.model_validate(values), tmp_path / "run")
    asked = {"model": {"path": str(folder), "max_length": 32}, "lora": {"rank": 4}}
    asked |= {"name": "answers", "task": "instruction", "data": {"train": "unused.jsonl"}}
    task = task_of("instruction")
    model = task.load_model(parse(RunConfig, asked, "test"))
    pairs = [Answering.record(f"the {word}", f"one {word}") for word in WORDS[:8]]
    data = task.encode(pairs, model.tokenizer, 32)
    settings = LocalSettings(
        steps=20,
        sampling_rate=1.0,
        expected_batch_size=8.0,
        microbatch_size=8,
        optimizer="adam",
        learning_rate=0.02,
        head_learning_rate=0.02,
        clipping_norm=1.0,
        noise_multiplier=0.1,
    )
    before = evaluate(model, data)
    start = model.adapter()
    secure = RandomStream.seeded(1, "noise")
    update = train_locally(model, data, settings, RandomStream.seeded(0), secure).update
    model.set_adapter(start + update)
    assert evaluate(model, data)["loss"] < 0.8 * before["loss"]
    assert len(Answering(model, 32).complete(["the cat", "the red fox"])) == 2


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "hi"}\n')
    tiny = config(tmp_path / "one.jsonl").model_copy()
    with pytest.raises(DataError):
        run_pretraining(tiny, tmp_path / "run")
