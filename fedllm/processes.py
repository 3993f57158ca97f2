"""Long-running processes: one at a time, children that do not outlive their parent, restarts."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from fedllm.errors import FedllmError
from fedllm.locks import exclusive

_FIRST_WAIT_S, _MAX_WAIT_S, _STABLE_S = 1.0, 60.0, 60.0
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
# What cannot get better by starting again.
_HOPELESS = (2,)


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a kit's lock file as long as the block runs: one process of a kind with one kit.

    Raises
    ------
    ConfigError
        If another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    busy = f"{what} is already running with this kit"
    with exclusive(path, busy, "stop it first, or use its own kit"):
        yield


def die_with_parent(parent: int) -> None:
    """Let the system kill this process when the thread that started it ends (Linux).

    Raises
    ------
    FedllmError
        If the parent has ended already.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise FedllmError("the process that started this one has ended")


def keep_memory_private() -> None:
    """Let no core dump and no debugger of the same user have this process's keys and records.

    Children inherit the limit; each program calls it anew for the rest.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Stop(threading.Event):
    """Set when a service is told to stop.

    Attributes
    ----------
    exit_code : int
        0 after SIGTERM, as a service manager expects; 130 after Ctrl-C.
    """

    exit_code = 0


def stop_on_signals() -> Stop:
    """Return an event that SIGTERM and SIGINT set; call in the main thread."""
    stop = Stop()

    def note(number: int, frame: object) -> None:
        stop.exit_code = 130 if number == signal.SIGINT else 0
        stop.set()

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return stop


def leave(code: int) -> NoReturn:
    """End this program now, also where threads still compute for nobody.

    An interpreter that ends in the usual way waits for some threads as long as they like, and
    ends others within what they compute, where the whole process is aborted.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Leave at once when told to stop: what the block does is nobody's loss."""
    codes = {signal.SIGTERM: 0, signal.SIGINT: 130}
    before = {
        number: signal.signal(number, lambda number, frame: leave(codes[signal.Signals(number)]))
        for number in codes
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_module(
    module: str, arguments: Sequence[str], stdin: bytes = b""
) -> subprocess.Popen[bytes]:
    """Start the ``main`` of a module as a child that dies with this thread.

    Nothing is imported from the working directory. The child must call `die_with_parent` with
    the first argument, this process's id.
    ``stdin`` reaches it through a pipe: secrets do not belong on a command line.
    """
    # Not "-m": processes that multiprocessing spawns would import that module once more.
    quiet = "import warnings; warnings.filterwarnings('ignore', module='transformers')"
    program = f"{quiet}; from {module} import main; main()"
    command = [sys.executable, "-P", "-c", program, str(os.getpid()), *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    if child.stdin is None:
        raise FedllmError("a child process has no pipe")
    # A child that died at once is met where its end is awaited.
    with suppress(BrokenPipeError):
        child.stdin.write(stdin)
    with suppress(BrokenPipeError):
        child.stdin.close()
    return child


def end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask a child to stop, and kill it when it does not within ``grace_s``."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def say(text: str) -> None:
    """Write a line with the time to standard error, for the service's journal.

    Never raises: nothing that a service did may be lost because nobody reads about it.
    """
    with suppress(OSError, ValueError):
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ} {text}", file=sys.stderr, flush=True)


def keep_running(
    module: str,
    arguments: Sequence[str],
    stop: threading.Event,
    say: Callable[[str], None],
    grace_s: float = 10.0,
    over: Callable[[], bool] = lambda: False,
) -> int:
    """Start a child (`start_module`) and start it again, with growing pauses, when it fails.

    Parameters
    ----------
    over : callable, optional
        Asked before each start: whether none follows, because the child was to end by itself.

    Returns
    -------
    int
        0 when ``stop`` was set or it is over, or the child's exit code when it cannot get better.
    """
    wait_s = _FIRST_WAIT_S
    while not stop.is_set() and not over():
        began = time.monotonic()
        child = start_module(module, arguments)
        while child.poll() is None and not stop.is_set():
            stop.wait(0.1)
        if stop.is_set():
            end(child, grace_s)
            break
        if child.returncode in _HOPELESS:
            return int(child.returncode)
        if child.returncode == 0:
            continue
        if time.monotonic() - began > _STABLE_S:
            wait_s = _FIRST_WAIT_S
        say(f"the working process ended ({_ending(child.returncode)}); again in {wait_s:.0f} s")
        again = time.monotonic() + wait_s
        while time.monotonic() < again and not over() and not stop.wait(0.1):
            pass
        wait_s = min(2 * wait_s, _MAX_WAIT_S)
    return 0


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
