from __future__ import annotations

import json
import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedllm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, json, fedllm.cli; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "peft", "opacus", "flwr", "ray", "tenseal", "matplotlib"}
    assert heavy.isdisjoint(json.loads(done.stdout))


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in ("demo", "pretrain", "simulate", "ledger", "privacy", "audit"):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("simulate", "nowhere.toml"), 2, "there is no file nowhere.toml"),
        (("simulate", "x", "--engine", "magic"), 2, "magic"),
        (("nonsense",), 2, "No such command"),
        (("ledger", "verify", "nowhere.sqlite"), 2, "nowhere.sqlite"),
        (("audit", "report", "nowhere"), 2, "nowhere"),
    ],
)
def test_errors_are_words_and_codes_not_tracebacks(arguments, code, words):
    done = run(*arguments)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code
