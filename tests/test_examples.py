"""The examples are read by the same strict readers as everybody's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedllm.config import load_run_config, load_site_policy

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
    import re
    import subprocess
    import sys

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
