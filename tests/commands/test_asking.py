"""Asking a model from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.serving_runs import LABELS, released
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import CheckpointError, ConfigError, DataError

__all__ = ["released"]
SECRET = "Zebediah"


def run(*arguments, **settings):
    return CliRunner().invoke(app, [str(part) for part in arguments], **settings)


def lines(done):
    assert done.exit_code == 0, done.exception
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    found = [
        {"id": "a", "text": f"my card {SECRET}", "prompt": f"my card {SECRET}"},
        {"id": "b", "text": "card " * 30, "prompt": "card " * 30},
        {"text": "fee", "prompt": "fee"},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return path


# --- predict ------------------------------------------------------------------------------------


def test_a_file_is_labelled_line_by_line(released, rows, tmp_path):
    folder = released()
    done = run("predict", folder, rows)
    found = lines(done)
    assert [(line["row"], line.get("id")) for line in found] == [(1, "a"), (2, "b"), (3, None)]
    assert all(line["label"] in LABELS and len(line["labels"]) == 3 for line in found)
    assert found[1]["tokens_cut"] > 0
    assert "1 of 3 texts are longer than 16 tokens" in done.stderr
    assert SECRET not in done.output
    again = run("predict", folder / "adapter", "-", "--top", 1, input=rows.read_text())
    assert [line["label"] for line in lines(again)] == [line["label"] for line in found]
    assert all(len(line["labels"]) == 1 for line in lines(again))
    out = tmp_path / "deep" / "out.jsonl"
    assert run("predict", folder, rows, "--out", out).stdout == ""
    assert [json.loads(line) for line in out.read_text().splitlines()] == found
    assert out.stat().st_mode & 0o077 == 0
    texts = run("predict", folder, "--text", f"my card {SECRET}", "--text", "fee")
    assert [line["label"] for line in lines(texts)] == [found[0]["label"], found[2]["label"]]


def test_spans_are_found(released, rows):
    found = lines(run("predict", released("bert", "token_classification"), rows))
    spans = [span for line in found for span in line["spans"]]
    assert spans
    assert {span["label"] for span in spans} <= set(LABELS)


def test_a_site_of_other_columns_is_read_by_the_runs_names(released, tmp_path):
    folder = released(data={"train": "unused.jsonl", "text": "note"})
    (tmp_path / "a.csv").write_text("id,note\n7,my card\n")
    (line,) = lines(run("predict", folder, tmp_path / "a.csv"))
    assert line["id"] == "7"
    (tmp_path / "b.csv").write_text("id,text\n7,my card\n")
    assert isinstance(run("predict", folder, tmp_path / "b.csv").exception, DataError)


def test_what_is_wrong_changes_no_file(released, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    folder = released()
    rows.write_text(rows.read_text() + f'{{"text": ""}}\n{{"txt": "{SECRET}"}}\n')
    done = run("predict", folder, rows, "--out", out)
    assert isinstance(done.exception, DataError)
    assert "row 4" in done.exception.message
    assert "row 5" in done.exception.message
    assert SECRET not in str(done.exception)
    assert out.read_text() == "before"


def test_wrong_inputs_are_told_before_the_model_is_loaded(rows, tmp_path):
    for arguments in ((), (rows, "--text", "a"), ("--text", " "), (tmp_path / "no.jsonl",)):
        done = run("predict", tmp_path / "nothing", *arguments)
        assert isinstance(done.exception, ConfigError)
        assert "there is no folder" not in done.exception.message


def test_models_without_labels_are_sent_on(released, rows):
    for kind, task in (("llama", "instruction"), ("llama", "causal")):
        done = run("predict", released(kind, task, name=task), rows)
        assert isinstance(done.exception, ConfigError)
        assert "fedllm generate" in done.exception.remedy
    folder = released(name="labels")
    for command, arguments in (("generate", ("--prompt", "a")), ("chat", ())):
        done = run(command, folder, *arguments)
        assert isinstance(done.exception, ConfigError)
        assert "fedllm predict" in done.exception.remedy


def test_a_base_model_by_itself_has_no_labels(tiny_checkpoint):
    done = run("predict", tiny_checkpoint("llama"), "--text", "a")
    assert "has no labels" in done.exception.message
    done = run("predict", tiny_checkpoint("bert"), "--text", "a")
    assert "is an encoder" in done.exception.message
    done = run("generate", tiny_checkpoint("llama"), "--prompt", "a", "--base", "x")
    assert "leave --base" in done.exception.remedy


def test_a_longer_text_can_be_read(released):
    folder = released()
    text = "card " * 30
    assert lines(run("predict", folder, "--text", text))[0]["tokens_cut"] == 14
    found = run("predict", folder, "--text", text, "--max-length", 64)
    assert lines(found)[0]["tokens_cut"] == 0
    done = run("predict", folder, "--text", text, "--max-length", 4000)
    assert isinstance(done.exception, ConfigError)


# --- generate -----------------------------------------------------------------------------------


def test_prompts_are_completed(released, rows, tmp_path):
    folder = released("llama", "instruction")
    done = run("generate", folder, rows, "--max-new-tokens", 5)
    found = lines(done)
    assert [(line["row"], line.get("id")) for line in found] == [(1, "a"), (2, "b"), (3, None)]
    assert all(line["response_tokens"] <= 5 for line in found)
    assert "1 of 3 prompts are longer than 11 tokens" in done.stderr
    assert SECRET not in done.output
    assert "seed" not in found[0]
    out = tmp_path / "out.jsonl"
    assert run("generate", folder, rows, "--max-new-tokens", 5, "--out", out).stdout == ""
    assert [json.loads(line) for line in out.read_text().splitlines()] == found
    (alone,) = lines(run("generate", folder, "--prompt", "fee", "--max-new-tokens", 5))
    assert alone["response"] == found[2]["response"]
    (raw,) = lines(run("generate", folder, "--prompt", "fee", "--max-new-tokens", 5, "--raw"))
    assert raw["prompt_tokens"] < alone["prompt_tokens"]


def test_a_seed_repeats_what_was_drawn(released, rows):
    folder = released("llama", "instruction")
    chance = ("--max-new-tokens", 8, "--temperature", 1.5)
    first = lines(run("generate", folder, rows, *chance))
    seed = first[0]["seed"]
    assert lines(run("generate", folder, rows, *chance, "--seed", seed)) == first
    assert lines(run("generate", folder, rows, *chance, "--seed", seed, "--batch", 1)) == first
    assert lines(run("generate", folder, rows, *chance, "--seed", seed + 1)) != first


def test_a_base_model_goes_on_with_texts(tiny_checkpoint):
    folder = tiny_checkpoint("gpt2")
    (found,) = lines(run("generate", folder, "--prompt", "my card", "--max-new-tokens", 6))
    assert found["response_tokens"] > 0
    word = found["response"].split()[1]
    (stopped,) = lines(
        run("generate", folder, "--prompt", "my card", "--max-new-tokens", 6, "--stop", word)
    )
    assert stopped["response"] == found["response"][: found["response"].index(word)]
    assert stopped["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "wrong", [("--top-p", 0), ("--top-p", 1.5), ("--stop", ""), ("--temperature", "nan")]
)
def test_settings_without_a_meaning_are_refused_before_the_model_is_loaded(wrong, tmp_path):
    (tmp_path / "config.json").write_text("no model's")
    done = run("generate", tmp_path, "--prompt", "a", *wrong)
    assert isinstance(done.exception, ConfigError)
    assert "config.json" not in str(done.exception)


def test_an_adapter_of_another_base_is_refused(released, tiny_checkpoint):
    folder = released("llama", "instruction")
    done = run("generate", folder, "--prompt", "a", "--base", tiny_checkpoint("gpt2"))
    assert isinstance(done.exception, CheckpointError)
    assert "of another base model" in done.exception.message


# --- chat ---------------------------------------------------------------------------------------


def test_a_conversation_on_a_pipe(released):
    folder = released("llama", "instruction")
    fixed = ("--temperature", 0, "--max-new-tokens", 4, "--max-length", 60)
    done = run("chat", folder, *fixed, input="my card\n\nmy card\n/reset\nmy card\n/quit\nfee\n")
    assert done.exit_code == 0, done.exception
    answers = done.stdout.splitlines()
    assert len(answers) == 3
    assert answers[0] == answers[2]
    assert "> " not in done.stdout
    assert run("chat", folder, *fixed, input="my card").stdout.splitlines() == answers[:1]


def test_the_system_is_heard(released):
    folder = released("llama", "instruction")
    fixed = ("--temperature", 0, "--max-new-tokens", 8, "--max-length", 60)
    plain = run("chat", folder, *fixed, input="my card\n").stdout
    told = run("chat", folder, *fixed, "--system", "bank loan rate", input="my card\n").stdout
    assert told != plain


@pytest.mark.slow
def test_it_is_a_program_with_exit_codes(released):
    """As it is installed: nothing but the result on standard output."""
    folder = released()
    program = [sys.executable, "-m", "fedllm", "predict", str(folder)]
    found = subprocess.run(
        [*program, "-"], input=b"my card\nfee\n", capture_output=True, env=os.environ, check=False
    )
    assert found.returncode == 0, found.stderr
    assert len([json.loads(line) for line in found.stdout.splitlines()]) == 2
    wrong = subprocess.run(
        [*program, "-"], input=b"\xff\xfe\n", capture_output=True, env=os.environ, check=False
    )
    assert wrong.returncode == 2
    assert b"standard input line 1" in wrong.stderr
    assert b"Traceback" not in wrong.stderr
