"""`fedllm chat` on a terminal: a person sees answers come, breaks them off, and leaves."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from support.tiny_models import save_tiny

# An answer that lasts until it is broken off.
LENGTH = 1_000_000
ENDLESS = ("--max-new-tokens", str(LENGTH), "--temperature", "0")


class Terminal:
    """A terminal with a program in it."""

    def __init__(self, master: int, program: subprocess.Popen[bytes]) -> None:
        self._master, self.program = master, program
        self.shown = ""

    def until(self, text: str, seconds: float = 120.0) -> str:
        """Wait until it shows a text; return what was shown up to there, and forget it."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, self.shown[-2000:]
            if select.select([self._master], [], [], 0.2)[0]:
                self.shown += os.read(self._master, 4096).decode()
            else:
                assert self.program.poll() is None, self.shown[-2000:]
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ended(self) -> int:
        """Let it show what is left, and return how it ended."""
        while self.program.poll() is None:
            if select.select([self._master], [], [], 0.2)[0]:
                self.shown += os.read(self._master, 4096).decode()
        return self.program.wait(60)


@contextmanager
def chat(*arguments):
    master, slave = pty.openpty()
    # The first terminal that a session opens is its own: Ctrl-C on it goes to its programs.
    opening = 'exec "$@" <"$0" >"$0" 2>&1'
    command = [sys.executable, "-m", "fedllm", "chat", *map(str, arguments)]
    program = subprocess.Popen(
        ["sh", "-c", opening, os.ttyname(slave), *command],
        env=os.environ | {"TERM": "dumb"},
        start_new_session=True,
    )
    try:
        yield Terminal(master, program)
    finally:
        program.kill()
        program.wait()
        # Held until now: a terminal that nobody holds, as before the program opens it, is gone.
        os.close(slave)
        os.close(master)


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
