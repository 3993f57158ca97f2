"""The examples are read by the same strict readers as everybody's files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.kits import make_federation
from support.ledger import filled
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.config import load_run_config, load_site_policy
from fedllm.federation.transport.superlink import NodeState
from fedllm.identity.kits import read_kit
from fedllm.runs.metrics import RoundReport, append_report
from fedllm.runs.summary import Summary
from fedllm_server.service import Service

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STORIES = ("bank_intents", "hospital_questions", "audit")
RUNS = [p for s in STORIES for p in (EXAMPLES / s).glob("*.toml") if p.stem != "pretrain"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_runs_can_be_read_and_find_their_data(path, public_data, monkeypatch):
    monkeypatch.setenv("FEDLLM_DATA", str(public_data))
    config = load_run_config(path)
    for location in (config.data.train, config.data.test):
        assert Path(location).exists()


def test_pretraining_configurations_can_be_read(monkeypatch, tmp_path):
    from fedllm.pretraining.config import load_pretrain_config

    monkeypatch.setenv("FEDLLM_DATA", str(tmp_path))
    found = [EXAMPLES / "hospital_questions/pretrain.toml", *EXAMPLES.glob("pretraining/*.toml")]
    assert len({load_pretrain_config(path, []).name for path in found}) == len(found)


def test_the_policy_can_be_read():
    policy = load_site_policy(EXAMPLES / "site.toml")
    assert policy.budget.epsilon == 10.0
    assert policy.allow.min_cohort == 3


def test_the_audit_story_calls_commands_and_options_that_exist():
    script = (EXAMPLES / "audit/audit.sh").read_text()
    subprocess.run(["sh", "-n", EXAMPLES / "audit/audit.sh"], check=True)
    calls = re.findall(r"^fedllm (.+)$", script, flags=re.MULTILINE)
    assert len(calls) >= 9
    for command in sorted(
        {tuple(call.split()[: 2 if "audit" in call[:5] else 1]) for call in calls}
    ):
        shown = subprocess.run(
            [sys.executable, "-m", "fedllm", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for call in calls:
            if tuple(call.split()[: len(command)]) == command:
                for option in re.findall(r"--[a-z-]+", call):
                    assert option in shown, (command, option)


SNIPPETS = [
    (script, snippet)
    for script in sorted(EXAMPLES.glob("*/*.sh"))
    for snippet in re.findall(r'"\$python" -c \'(.*?)\'', script.read_text(), re.DOTALL)
]


@pytest.fixture
def outputs(tmp_path):
    """For each snippet: arguments, input and a part of the output, as today's program has them."""
    filled(tmp_path / "ledger.sqlite")
    shown = CliRunner().invoke(app, ["ledger", "show", str(tmp_path / "ledger.sqlite"), "--json"])
    make_federation(tmp_path)
    kits, nodes = tmp_path / "kits", [NodeState("anne", 1, True, "2026-01-01T00:00:00+00:00")]
    service = Service(read_kit(kits / "coordinator", "coordinator"), ("127.0.0.1", 0), print)
    service._report(SimpleNamespace(nodes=lambda: nodes), running=False)
    figures = {"metrics_before": {"accuracy": 0.5}, "metrics": {"accuracy": 0.75}}
    end = Summary(rounds=9, privacy={"promised": 8.0}, **figures)
    (tmp_path / "summary.json").write_text(end.model_dump_json())
    key = read_kit(kits / "anne", "site").identity.public_bytes().hex()
    return {
        '["nodes"]': ([kits / "coordinator/state/status.json", "1"], "", ""),
        '["metrics"]': ([tmp_path / "summary.json"], "", "0.5000 -> 0.7500, epsilon 8.0"),
        "read_kit": ([kits / "anne"], "", key),
        "sys.stdin": ([], shown.output, "of 2.0 spent"),
    }


def test_what_scripts_read_from_commands_is_there(outputs):
    assert len(SNIPPETS) >= len(outputs)
    for script, snippet in SNIPPETS:
        (known,) = [found for mark, found in outputs.items() if mark in snippet]
        arguments, given, said = known
        command = [sys.executable, "-c", snippet, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        assert said in done.stdout


def test_what_scripts_look_for_in_files_is_there(tmp_path):
    (pattern,) = re.findall(
        r'grep -q "(.*)" .*metrics\.jsonl', (EXAMPLES / "deployment/run.sh").read_text()
    )
    append_report(tmp_path / "metrics.jsonl", RoundReport(round=3, sites=2))
    expected = pattern.replace('\\"', '"').replace("$1", "3")
    assert re.search(expected.replace("{", r"\{"), (tmp_path / "metrics.jsonl").read_text())
