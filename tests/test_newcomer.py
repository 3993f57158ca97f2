"""The README's five commands train, ask, export and serve a classifier and a chat model."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent
# The same commands on fewer records: what makes them work does not hang on how many.
FEWER = {
    "examples/bank_intents/shared_noise.toml": (
        "--set rounds.count=1 --set data.test_limit=40 "
        "--set training.sampling_rate=0.02 --set training.batch_size=20"
    ),
    "examples/hospital_questions/run.toml": (
        "--set rounds.count=1 --set data.test_limit=9 --set model.path={base} "
        "--set training.sampling_rate=0.004 --set training.batch_size=6"
    ),
}


def blocks() -> list[list[str]]:
    """The lines of the blocks of code in that part of the README."""
    part = (ROOT / "README.md").read_text().partition("## Train, ask, export, serve")[2]
    found = re.findall(r"^```\n(.*?)^```", part.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in found]


def test_there_are_five_and_what_they_name_is_there():
    commands, requests = blocks()
    assert [line.split()[1] for line in commands] == [
        "simulate",
        "simulate",
        "predict",
        "export",
        "serve",
    ]
    assert all(line.startswith("curl ") for line in requests)
    served = {Path(folder).name for folder in commands[-1].split()[2:]}
    assert {json.loads(shlex.split(line)[3])["model"] for line in requests} == served
    for line, fewer in zip(commands[:2], FEWER, strict=True):
        assert line.split()[2] == fewer
        text = (ROOT / fewer).read_text()
        assert re.search(r'^name = "(.*)"$', text, re.MULTILINE)[1] in served


@contextmanager
def serving(command: list[str], folder: Path) -> Iterator[str]:
    """Run the last command on a free port; yields where it is reached."""
    program = subprocess.Popen(
        [*command, "--port", "0"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in program.stderr if "serving" in line)
        yield re.search(r"http://[^/]+", line)[0]
    finally:
        program.terminate()
        program.communicate(timeout=60)
    assert program.returncode == 0


@pytest.mark.slow
@pytest.mark.data
def test_they_do_what_the_readme_says(public_data, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLLM_DATA", str(public_data))
    monkeypatch.delenv("FEDLLM_API_KEY", raising=False)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands, requests = blocks()

    def full(line: str) -> list[str]:
        words = shlex.split(line)
        more = FEWER.get(words[2], "").format(base=tiny_checkpoint("llama"))
        return [sys.executable, "-m", *words, *more.split()]

    def output(command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    train, train_chat, predict, export, serve = map(full, commands)
    output(train)
    output(train_chat)
    asked = json.loads(output(predict))
    assert asked["label"] == asked["labels"][0]["label"]
    output(export)
    (line,) = output([sys.executable, "runs/bank/use.py", "my card was stolen"]).splitlines()
    shares = json.loads(line)["labels"]
    assert max(shares, key=shares.get) == asked["label"]
    assert shares[asked["label"]] == pytest.approx(asked["probability"], abs=1e-3)
    with serving(serve, tmp_path) as url:
        answers = []
        for line in requests:
            _, where, option, body = shlex.split(line)
            assert option == "--json"
            path = where.removeprefix("http://127.0.0.1:8000")
            headers = {"content-type": "application/json"}
            answers.append(httpx.post(url + path, content=body, headers=headers, timeout=120))
        assert all(answer.is_success for answer in answers)
        labelled, said = (answer.json() for answer in answers)
    assert labelled["data"][0]["label"] == asked["label"]
    assert labelled["data"][0]["probability"] == pytest.approx(asked["probability"], abs=1e-4)
    assert said["choices"][0]["message"]["role"] == "assistant"
    assert said["usage"]["completion_tokens"] >= 1
