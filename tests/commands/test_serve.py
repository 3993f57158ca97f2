"""`fedllm serve` as a program: what it refuses to begin with, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest
from support.serving_runs import released
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import CheckpointError, ConfigError

__all__ = ["released"]
KEY = "k" * 32


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("FEDLLM_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def signals():
    """Put back what the command makes of them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def refused(*arguments):
    done = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert isinstance(done.exception, ConfigError), done.output
    return done.exception


def test_without_keys_it_stays_on_loopback(released, monkeypatch):
    found = refused(released(), "--host", "0.0.0.0")
    assert "without keys" in found.message
    assert "--keys" in found.remedy
    monkeypatch.setenv("FEDLLM_API_KEY", "short")
    assert "shorter than" in refused(released(name="other"), "--host", "0.0.0.0").message


def test_what_cannot_be_served_is_told(released, tiny_checkpoint, tmp_path):
    run = released()
    assert "two models are called run" in refused(run, run).message
    assert "no name for a model" in refused(f"a b={run}").message
    found = refused(tmp_path / "nothing")
    assert "there is no folder" in found.message
    # There is no --set here, and no run.toml.
    assert "--set" not in found.remedy
    assert isinstance(refused(run, "--base", tiny_checkpoint("roberta")), CheckpointError)
    assert "needs its key" in refused(run, "--tls-certificate", "x").message
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[ward]\nkey = "{KEY}"\nmodels = ["other"]\n')
    keys.chmod(0o600)
    assert "not served; there are: run" in refused(run, "--keys", keys).message
    keys.write_text('[patterns]\nward = "("\n')
    assert "no regular expression" in refused(run, "--guard-patterns", keys).message


def test_a_port_that_is_taken_is_told(released):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = refused(released(), "--port", taken.getsockname()[1])
    assert "cannot listen" in found.message
    assert "--port" in found.remedy


def test_two_do_not_load_for_one_port():
    """The second is told at once, and not when the first has loaded."""
    from fedllm.serving.server import Address, listening_socket

    first = listening_socket(Address("127.0.0.1", 0))
    with first, pytest.raises(ConfigError, match="cannot listen"):
        listening_socket(Address("127.0.0.1", first.getsockname()[1]))


def test_it_stops_while_it_loads(tmp_path):
    """And says what it loads."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    program = subprocess.Popen(
        [sys.executable, "-m", "fedllm", "serve", str(tmp_path / "base"), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "loading base" in program.stderr.readline()
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == 0
        assert program.stderr.read() == ""
    finally:
        program.kill()
        program.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_serves_until_it_is_told_to_stop(number, code, released):
    runs = [f"tuned={released('llama', 'instruction')}", str(released(name="labels"))]
    program = subprocess.Popen(
        [sys.executable, "-m", "fedllm", "serve", *runs, "--port", "0", "--guard"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"FEDLLM_API_KEY": KEY},
    )
    try:
        line = next(line for line in program.stderr if "serving" in line)
        assert "tuned, labels" in line
        url = re.search(r"http://\S+", line)[0]
        headers = {"authorization": f"Bearer {KEY}"}
        body = {"model": "labels", "input": "my card Zebediah"}
        assert httpx.get(f"{url}/models").status_code == 401
        found = httpx.post(f"{url}/classify", json=body, headers=headers, timeout=60)
        assert found.status_code == 200
        program.send_signal(number)
        begun = time.monotonic()
        assert program.wait(60) == code
        assert time.monotonic() - begun < 30
        rest = program.stderr.read()
        assert "POST /v1/classify 200 environment" in rest
        assert "stopped" in rest
        assert "Zebediah" not in rest
        assert program.stdout.read() == ""
    finally:
        program.kill()
        program.wait()


# Reads prompts of some length for ever, within torch.
SLOW = """
from functools import wraps
import torch
from transformers import LlamaForCausalLM
own = LlamaForCausalLM.forward
@wraps(own)
def forward(self, *others, input_ids=None, **more):
    many = torch.ones(1000, 1000)
    while input_ids is not None and input_ids.shape[1] > 24:
        many = (many @ many).clamp(0, 1)
    return own(self, *others, input_ids=input_ids, **more)
LlamaForCausalLM.forward = forward
from fedllm.cli import main
main()
"""


@pytest.mark.slow
def test_it_ends_cleanly_where_a_prompt_is_still_read_for_nobody(released):
    """An interpreter that ends beside torch's threads aborts (SIGABRT)."""
    run = released("llama", "instruction")
    command = [sys.executable, "-c", SLOW, "serve", str(run), "--port", "0"]
    program = subprocess.Popen(
        [*command, "--max-length", "100", "--time-limit", "2"], stderr=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in program.stderr if "serving" in line)
        url = re.search(r"http://\S+", line)[0]
        body = {"model": "run", "prompt": "card " * 40, "max_tokens": 4}
        assert httpx.post(f"{url}/completions", json=body, timeout=60).status_code == 504
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == 0
        assert program.stderr.read().rstrip().endswith("stopped")
    finally:
        program.kill()
        program.wait()
