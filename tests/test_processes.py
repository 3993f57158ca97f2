"""Processes that are kept running: locks, restarts, children that die with their parent."""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedllm.errors import ConfigError, FedllmError
from fedllm.locks import is_held
from fedllm.processes import keep_running, only_one, say, start_module

CHILD = """
import sys, time
from pathlib import Path
from fedllm.processes import die_with_parent
def main():
    parent, folder, code = sys.argv[1:]
    die_with_parent(int(parent))
    with (Path(folder) / "starts").open("a") as stream:
        stream.write("x")
    if code == "sleep":
        time.sleep(600)
    sys.exit(int(code))
"""


@pytest.fixture
def child(tmp_path, monkeypatch) -> str:
    (tmp_path / "a_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return "a_child"


def starts(folder: Path) -> int:
    path = folder / "starts"
    return len(path.read_text()) if path.exists() else 0


def test_a_lock_lives_as_long_as_its_process(tmp_path):
    path = tmp_path / "state" / "x.lock"
    assert not is_held(path)
    with only_one(path, "a client"):
        assert is_held(path)
        with (
            pytest.raises(ConfigError, match="a client is already running"),
            only_one(path, "a client"),
        ):
            pass
    assert not is_held(path)
    with only_one(path, "a client"):
        pass


def test_a_look_at_the_lock_does_not_keep_anybody_from_starting(tmp_path, monkeypatch):
    """``server status`` holds the lock for a moment, just when the coordinator starts."""
    path = tmp_path / "x.lock"
    path.touch()
    with path.open("r") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        with only_one(path, "a coordinator"):
            pass


def test_a_child_that_dies_before_it_reads_is_no_error_of_its_parent(child, tmp_path):
    ended = start_module(child, [str(tmp_path), "3"], bytes(1 << 20))
    assert ended.wait() == 3


def test_a_child_that_fails_is_started_again_until_told_to_stop(child, tmp_path):
    stop, said = threading.Event(), []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            stop.set()

    assert keep_running(child, [str(tmp_path), "1"], stop, say) == 0
    assert starts(tmp_path) == 2
    assert "again in 1 s" in said[0]
    assert "again in 2 s" in said[1]


def test_what_cannot_get_better_is_not_tried_again(child, tmp_path):
    assert keep_running(child, [str(tmp_path), "2"], threading.Event(), lambda text: None) == 2
    assert starts(tmp_path) == 1


def test_children_do_not_outlive_a_parent_that_is_killed(child, tmp_path):
    program = (
        "import threading; from fedllm.processes import keep_running\n"
        f"keep_running({child!r}, [{str(tmp_path)!r}, 'sleep'], threading.Event(), print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 900
    while not starts(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (number,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while alive(number):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(number: str) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_that_holds_keys_leaves_no_core_dump_and_lets_nobody_look_in():
    code = (
        "import ctypes, resource, fedllm.processes as p; p.keep_memory_private(); "
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 0) 0\n"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("fedllm_client.node", ["1", "site", "kit", "x"]), ("fedllm_server.runner", ["1", "k", "f"])],
)
def test_the_working_processes_keep_their_memory_private_first(monkeypatch, module, arguments):
    found = importlib.import_module(module)

    class FirstError(Exception):
        pass

    def first() -> None:
        raise FirstError

    monkeypatch.setattr(found, "keep_memory_private", first)
    monkeypatch.setattr(
        sys, "argv", ["x", "1", "site", "kit", "policy"][: 5 if "node" in module else 4]
    )
    with pytest.raises(FirstError):
        found.main()


@pytest.mark.parametrize("role", ["client", "authority", "server"])
def test_services_keep_their_memory_private_before_they_read_a_kit(monkeypatch, role, tmp_path):
    from typer.testing import CliRunner

    from fedllm import processes
    from fedllm.cli import app

    asked = []

    def first() -> None:
        asked.append(role)
        raise FedllmError("first")

    monkeypatch.setattr(processes, "keep_memory_private", first)
    options = ["--policy", str(tmp_path / "p")] if role == "client" else []
    done = CliRunner().invoke(app, [role, "start", "--kit", str(tmp_path / "none"), *options])
    assert asked == [role]
    assert str(done.exception) == "first"


@pytest.mark.parametrize("unit", ["authority", "coordinator", "site"])
def test_systemd_takes_no_core_dump_of_a_service(unit):
    folder = Path(__file__).parent.parent / "examples" / "deployment" / "systemd"
    assert "LimitCORE=0" in (folder / f"fedllm-{unit}.service").read_text().splitlines()


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("closed file")])
def test_a_journal_that_cannot_be_written_stops_no_service(monkeypatch, error):
    class Broken:
        def write(self, text):
            raise error

        flush = write

    monkeypatch.setattr(sys, "stderr", Broken())
    say("a word")


def test_a_program_ends_also_where_a_thread_still_computes():
    program = (
        "import threading, time\n"
        "from fedllm.processes import leave\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('told', end='')\n"
        "leave(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "told", "")
