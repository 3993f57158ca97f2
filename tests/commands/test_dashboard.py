"""`fedllm dashboard` as a program: what it refuses to begin with, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest
from support.kits import make_federation
from support.run_folder import write_run
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.dashboard.listening import opened
from fedllm.errors import ConfigError


def refused(*arguments):
    done = CliRunner().invoke(app, ["dashboard", *map(str, arguments)])
    assert isinstance(done.exception, ConfigError), done.output
    return done.exception


def test_a_folder_without_a_run_is_refused_before_anything_is_served(tmp_path):
    assert "there is no run in" in refused(tmp_path).message
    assert "there is no folder" in refused(tmp_path / "nothing").message
    (tmp_path / "file").write_text("")
    assert "there is no folder" in refused(tmp_path / "file").message


def test_two_dashboards_on_one_port(tmp_path):
    write_run(tmp_path / "run")
    with opened(0, "--port") as first:
        port = first.getsockname()[1]
        found = refused(tmp_path, "--port", port)
    assert f"cannot listen on 127.0.0.1:{port}" in found.message
    assert "take another port with --port (0: a free one); another dashboard" in found.remedy


@pytest.mark.slow
@pytest.mark.parametrize(("order", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_is_served_until_it_is_told_to_stop_also_while_a_page_is_open(tmp_path, order, code):
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    command = [sys.executable, "-m", "fedllm", "dashboard", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        address = re.fullmatch(r"open (http://127\.0\.0\.1:\d+/) .*\n", program.stdout.readline())[
            1
        ]
        with httpx.Client(timeout=30) as web:
            assert "made-up" in web.get(address).text
            with web.stream("GET", f"{address}events", params={"run": "run"}) as stream:
                line = next(line for line in stream.iter_lines() if line.startswith("data: "))
                assert "top" in json.loads(line.removeprefix("data: "))["sections"]
                program.send_signal(order)
                assert program.wait(30) == code


def test_a_coordinator_says_at_once_that_the_port_is_taken(tmp_path):
    make_federation(tmp_path / "fed")
    kit = tmp_path / "fed" / "kits" / "coordinator"
    with opened(0, "--port") as first:
        port = first.getsockname()[1]
        arguments = ["server", "start", "--kit", str(kit), "--dashboard", str(port)]
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        done = CliRunner().invoke(app, [*arguments, "--listen", "127.0.0.1:0"])
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "--dashboard" in done.exception.remedy
    assert not (kit / "state" / "status.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("order", [signal.SIGTERM, signal.SIGKILL])
def test_a_coordinator_shows_its_runs_as_long_as_it_lives(tmp_path, order):
    make_federation(tmp_path / "fed")
    kit = tmp_path / "fed" / "kits" / "coordinator"
    command = [sys.executable, "-m", "fedllm", "server", "start", "--kit", str(kit)]
    command += ["--listen", "127.0.0.1:0", "--dashboard", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        found = (re.search(r"dashboard on (\S+)", line) for line in program.stderr)
        address = next(match[1] for match in found if match)
        with httpx.Client(timeout=30) as web:
            assert "There is no run here yet" in web.get(address).text
            write_run(kit / "state" / "runs" / "ward")
            deadline = time.monotonic() + 30
            while "made-up" not in web.get(address).text:
                assert time.monotonic() < deadline
            assert "made-up" in web.get(f"{address}run", params={"run": "ward"}).text
        program.send_signal(order)
        program.wait(60)
        with pytest.raises(httpx.ConnectError):
            while time.monotonic() < deadline + 30:
                httpx.get(address)
