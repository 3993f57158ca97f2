"""A terminal with a program in it, and somebody who types."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Terminal:
    """A terminal with a program in it."""

    def __init__(self, master: int, program: subprocess.Popen[bytes]) -> None:
        self._master, self.program = master, program
        # A character may come in two parts.
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.shown = ""

    def until(self, text: str, seconds: float = 120.0) -> str:
        """Wait until it shows a text; return what was shown up to there, and forget it."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, self.shown[-2000:]
            if not self._read():
                assert self.program.poll() is None, self.shown[-2000:]
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ended(self) -> int:
        """Let it show what is left, and return how it ended."""
        while self.program.poll() is None:
            self._read()
        while self._read():
            pass
        return self.program.wait(60)

    def _read(self) -> bool:
        """Take what was shown meanwhile; tell if there was anything."""
        if not select.select([self._master], [], [], 0.2)[0]:
            return False
        try:
            new = os.read(self._master, 4096)
        except OSError:
            # The terminal was hung up with the program's end.
            new = b""
        self.shown += self._decoder.decode(new)
        return bool(new)


@contextmanager
def on_terminal(*arguments: object, columns: int = 80, kind: str = "dumb") -> Iterator[Terminal]:
    """Start `fedllm` on a terminal of its own."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # The first terminal that a session opens is its own: Ctrl-C on it goes to its programs.
    opening = 'exec "$@" <"$0" >"$0" 2>&1'
    command = [sys.executable, "-m", "fedllm", *map(str, arguments)]
    program = subprocess.Popen(
        ["sh", "-c", opening, os.ttyname(slave), *command],
        env=os.environ | {"TERM": kind},
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
