"""`fedllm rate` as a rater uses it: on a terminal, and with the page that it serves."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import httpx
import pytest
from support.rating import lines
from support.serving_runs import released
from support.terminal import on_terminal

__all__ = ["released"]
SECRET = "Zebediah"


@pytest.fixture
def asked(released, tmp_path):
    """Arguments for three prompts and a tiny model."""
    path = tmp_path / "prompts.jsonl"
    texts = [f"my card {SECRET}", "fee", "a lost card"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    folder = released("llama", "instruction", model={"max_length": 120})
    out = tmp_path / "ratings.jsonl"
    small = ("--max-new-tokens", 6, "--answers", 3, "--rater", "ann")
    return ("rate", path, "--model", folder, "--out", out, *small), out


@pytest.mark.slow
def test_a_rater_ranks_leaves_and_comes_back(asked):
    arguments, out = asked
    with on_terminal(*arguments) as terminal:
        assert SECRET in terminal.until("> ")
        terminal.type("2 1=3\n")
        assert "prompt 2 of 3" in terminal.until("> ")
        terminal.type("7\n")
        assert "numbers 1 to 3" in terminal.until("> ")
        terminal.type("s\n")
        terminal.until("> ")
        terminal.type("u\n")
        assert "prompt 2 of 3" in terminal.until("> ")
        terminal.type("q\n")
        assert terminal.ended() == 0
        assert "1 of 3 ranked" in terminal.shown
        assert "Traceback" not in terminal.shown
    assert [line["state"] for line in lines(out)] == ["ranked", "skipped", "open"]
    # A crash while the next line was written.
    out.write_bytes(out.read_bytes() + b'{"format": "fedllm.ra')
    with on_terminal(*arguments) as terminal:
        assert "prompt 2 of 3" in terminal.until("> ")
        terminal.type("3 2 1\n")
        terminal.until("> ")
        terminal.type("\x03")
        assert terminal.ended() == 130
        assert "interrupted: 2 of 3 ranked" in terminal.shown
    assert [line["state"] for line in lines(out)] == ["ranked", "skipped", "open", "ranked"]


@pytest.mark.slow
def test_a_narrow_terminal_is_refused(asked):
    # Of a dumb one, nobody knows the width.
    with on_terminal(*asked[0], columns=30, kind="xterm") as terminal:
        assert terminal.ended() == 2
        assert "30 columns" in terminal.shown


@pytest.mark.slow
def test_the_page_is_served_until_the_rater_leaves(asked):
    arguments, out = asked
    command = [sys.executable, "-m", "fedllm", *map(str, arguments), "--browser"]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    try:
        told = program.stdout.readline()
        found = re.match(r"open (http://127\.0\.0\.1:\d+)(/[\w-]{43}/)$", told)
        assert found, (told, program.poll() is not None and program.stderr.read())
        url, origin = found[1] + found[2], {"origin": found[1]}
        with httpx.Client(timeout=60) as client:
            for _ in range(600):
                text = client.get(url).text
                if "Prompt 1 of 3" in text:
                    break
            unit = re.search('name="unit" value="([0-9a-f]+)"', text)[1]
            form = {"order": "rank", "unit": unit, "words": "2 1=3"}
            assert client.post(url, data=form, headers=origin).status_code == 303
            assert (
                "Everything is kept" in client.post(url, data={"order": "q"}, headers=origin).text
            )
        rest, said = program.communicate(timeout=60)
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 0
    assert "1 of 3 ranked" in rest
    assert SECRET not in rest + said
    assert [line["rater"] for line in lines(out)] == ["ann"]
    assert out.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_page_ends_with_the_command(number, code, asked):
    command = [sys.executable, "-m", "fedllm", *map(str, asked[0]), "--browser"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout.readline().startswith("open http")
        program.send_signal(number)
        assert program.wait(60) == code
    finally:
        program.kill()
        program.wait()
