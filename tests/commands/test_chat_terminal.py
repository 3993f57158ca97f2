"""`fedllm chat` on a terminal: a person sees answers come, breaks them off, and leaves."""

from __future__ import annotations

import signal

import pytest
from support.terminal import on_terminal
from support.tiny_models import save_tiny

# An answer that lasts until it is broken off.
LENGTH = 1_000_000
ENDLESS = ("--max-new-tokens", str(LENGTH), "--temperature", "0")


def chat(*arguments):
    return on_terminal("chat", *arguments)


@pytest.mark.slow
def test_a_person_sees_it_write_and_breaks_it_off(tmp_path):
    base = save_tiny("llama", tmp_path / "base", max_position_embeddings=LENGTH)
    with chat(base, *ENDLESS) as terminal:
        told = terminal.until("> ")
        assert "/reset" in told and "/quit" in told
        terminal.type("/help\n")
        assert "Ctrl-C breaks an answer off" in terminal.until("> ")
        for _ in range(2):
            terminal.type("my card\n")
            # Words come while it is written, long before its end.
            terminal.until("my card\r\n")
            terminal.until(" ")
            terminal.until(" ")
            assert terminal.program.poll() is None
            terminal.type("\x03")
            terminal.until("broken off; the question and what was answered are forgotten")
            terminal.until("> ")
        terminal.type("/reset\n")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "code"), [("/quit\n", 0), ("\x03", 130)])
def test_it_ends_when_it_is_told_to(typed, code, tmp_path):
    """Where nothing is written, Ctrl-C ends the program, as it does others."""
    with chat(save_tiny("llama", tmp_path / "base"), "--max-new-tokens", 4) as terminal:
        terminal.until("> ")
        terminal.type(typed)
        assert terminal.ended() in (code, -signal.SIGINT if code else code)
        assert "Traceback" not in terminal.shown
