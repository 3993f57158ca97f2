"""The card says what the run folder says, and no more; its script runs without fedllm."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from exporting.test_peft_format import TEXTS, own_shares, rows_of, use
from support.federation import records, small_config, write_jsonl

from fedllm.audit.attacks.results import CanaryAttack, CanaryResult, save
from fedllm.config import RunConfig, parse
from fedllm.errors import ConfigError
from fedllm.exporting.card import Handed, card
from fedllm.exporting.export import export, write_released_card
from fedllm.exporting.released import read_released
from fedllm.privacy.ledger.heads import read_heads
from fedllm.runs.record import read_run_folder
from fedllm_server.simulation import simulate

HANDED = Handed("peft", "An adapter.", "sha256-ab", None, "", "print()\n")


def script_of(text):
    return text.partition("```python\n")[2].partition("```\n")[0]


def head_of(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_a_run_ends_with_a_card_whose_script_runs_without_fedllm(tiny_checkpoint, tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", records(60))
    config = small_config(
        tiny_checkpoint("bert"),
        data={"train": str(train), "sites": 3},
        rounds={"count": 1},
    )
    words = {"data": "Made-up questions.", "intended_use": "For tests.", "licence": "CC0-1.0"}
    config = parse(RunConfig, config.model_dump() | {"card": words}, "test")
    out = tmp_path / "out"
    simulate(config, out)
    text = (out / "adapter" / "README.md").read_text()
    for word in words.values():
        assert word in text
    assert head_of(text)["license"] == "CC0-1.0"
    assert "simulation" in text
    assert "Not attacked" in text
    assert "Not measured" in text
    heads = read_heads(out / "ledger_heads.jsonl")
    assert len(heads) == 3
    for found in heads.values():
        assert found[-1].hash in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["model"]["fingerprint"] in text
    assert summary["adapter_sha256"] in text
    assert str(tmp_path) not in text
    assert str(tiny_checkpoint("bert")) not in text
    (out / "adapter" / "other.py").write_text(script_of(text))
    found = use(out / "adapter", tiny_checkpoint("bert"), *TEXTS, script="other.py")
    model, wanted = own_shares(out)
    torch.testing.assert_close(rows_of(found, model.labels), torch.stack(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["bitfit", pytest.param("lora", marks=pytest.mark.slow)])
def test_the_script_of_a_released_language_model_runs(finished, tmp_path, tiny, method):
    run = finished("llama", "causal", lora={"method": method})
    write_released_card(run, read_released(run).model)
    text = (run / "adapter" / "README.md").read_text()
    (run / "adapter" / "use.py").write_text(script_of(text))
    (line,) = use(run / "adapter", tiny("llama"), "card cash")
    assert line["answer"]


def test_what_nobody_said_is_unknown(finished):
    text = card(read_run_folder(finished()), HANDED)
    assert "Unknown: the coordinator did not say what the records are" in text
    assert "licence, in the words of its folder: unknown" in text
    assert "licence of the adapter: unknown" in text
    assert head_of(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Unknown: the run folder holds no heads" in text


def test_privacy_is_told_with_its_unit(finished):
    text = card(read_run_folder(finished()), HANDED)
    for line in (
        "- epsilon: 7.933",
        "- epsilon that was asked for: 8",
        "- delta: 1e-05",
        "- unit: each record",
        "- adjacency: zero-out",
        "- mechanism: DP-SGD with Gaussian noise; noise: local",
    ):
        assert line in text
    assert "differential-privacy" in head_of(text)["tags"]
    text = card(read_run_folder(finished(privacy={"epsilon": None})), HANDED)
    assert "NONE: this run was not private" in text
    assert "- epsilon:" not in text
    assert "differential-privacy" not in head_of(text)["tags"]


def test_words_of_the_coordinator_stay_words(finished):
    """They could forge sections, links and HTML, and hide the true ones in a comment."""
    words = (
        "Questions & <b>answers</b>.\n\n## Privacy\n\n- epsilon: 0.1\nForged\n---\n```\n    code\n"
        "<!--\n<script>alert(1)</script> [here](http://evil) ![x](http://evil)\n1. one\n\u202e"
    )
    run = finished(card={"data": words, "intended_use": words})
    text = card(read_run_folder(run), HANDED)
    assert text.count("\n## Privacy\n") == 1
    for part in ("Data", "Use"):
        said = text.partition(f"\n## {part}\n\nThe coordinator says:\n\n")[2].partition("\n\n")[0]
        assert said.count("\n") == words.count("\n")
        assert all(line == ">" or line.startswith("> ") for line in said.split("\n"))
        assert "> Questions &amp; &lt;b&gt;answers&lt;/b&gt;." in said
        assert "> \\#\\# Privacy" in said
        assert "> \\- epsilon: 0.1" in said
        assert "> \\---" in said
        assert "> 1\\. one" in said
        for active in ("<", "\u202e", "> `", "> -"):
            assert active not in said
        assert not re.search(r"(?<!\\)[\[\]!]", said)


def test_an_epsilon_without_ledgers_is_a_claim(finished):
    run = finished()
    text = card(read_run_folder(run), HANDED)
    assert "- epsilon: 7.933 (as the coordinator claims; no ledger here)\n" in text


def test_what_attacks_found_is_told(finished):
    run = finished()
    attack = CanaryAttack(
        kind="white-box", canaries=100, guesses=50, right=50, confidence=0.95,
        epsilon=9.5, epsilon_without_assumption=9.0,
    )  # fmt: skip
    found = CanaryResult(claimed=8.0, recomputed=8.0, delta=1e-5, attacks=(attack,))
    save(run, "canaries", found)
    text = card(read_run_folder(run), HANDED)
    assert "The claim is wrong" in text
    assert "Not attacked" not in text
    (run / "audit" / "canaries.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        card(read_run_folder(run), HANDED)


def test_words_of_others_are_shown_as_they_are(finished):
    handed = Handed("peft", "x.", "a`b", "o/n", 'MIT"\nx: y\u202e', "print()\n")
    text = card(read_run_folder(finished(card={"licence": 'x"\ntags: [evil]'})), handed)
    assert head_of(text)["license"] == 'x"\ntags: [evil]'
    assert head_of(text)["tags"] == ["fedllm", "federated-learning", "differential-privacy", "lora"]
    assert "\u202e" not in text
    assert "`a'b`" in text


def test_exports_have_a_card_of_the_run_as_it_is_now(finished, tmp_path):
    run = finished(card={"base_model": "somebody/tiny"})
    (run / "report.html").write_text("report")
    export(run, tmp_path / "out", "peft")
    text = (tmp_path / "out" / "README.md").read_text()
    assert head_of(text)["base_model"] == "somebody/tiny"
    assert hashlib.sha256(b"report").hexdigest() in text
    assert (tmp_path / "out" / "use.py").read_text() == script_of(text)


def test_a_repository_has_an_owner(finished):
    for name in ("tiny", "a/b/c", "../x", "/tmp/x", "a/", "ä/b", "a b/c"):
        with pytest.raises(ConfigError, match="is no repository"):
            finished(card={"base_model": name})


def test_how_many_were_measured_is_no_measure(finished):
    run = finished()
    told = json.loads((run / "summary.json").read_text())
    told["metrics"] |= {"records": 1560.0}
    (run / "summary.json").write_text(json.dumps(told))
    text = card(read_run_folder(run), HANDED)
    assert "public test file (1,560 records):" in text
    assert "| `accuracy` |" in text
    assert "| `records` |" not in text


@pytest.mark.parametrize(
    ("kind", "task", "asked"),
    [("bert", "classification", "predict FOLDER FILE"), ("llama", "causal", "generate FOLDER")],
)
def test_what_only_fedllm_knows_names_its_commands(kind, task, asked, finished):
    """As integers, for which there is no script."""
    text = card(read_run_folder(finished(kind, task)), replace(HANDED, script=""))
    assert f"fedllm {asked}" in text
    assert "fedllm serve FOLDER" in text
