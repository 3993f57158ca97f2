"""What viewers of one run cost: CPU of the dashboard's process while a run goes on.

A made-up run of 20 sites grows as a run does, an answer or two a second and a round every ten
seconds, beside `fedllm dashboard` in a process of its own. Viewers keep their pages open and are
sent what changes. A coordinator's dashboard is such a process too, so that its viewers cost the
coordinator what other programs of the machine cost it.

    OMP_NUM_THREADS=1 python benchmarks/dashboard.py [--viewers 200] [--seconds 20] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS, SITES, ROUND_S = 100, tuple(f"site-{number:02d}" for number in range(20)), 10
RUN_TOML = """name = "watched"
task = "classification"
[model]
path = "base"
[data]
train = "t.jsonl"
[rounds]
count = 100
"""


class Growing:
    """A run folder that grows by a second at a time, and is held as a run holds it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._second = folder, 0
        (folder / "run.toml").write_text(RUN_TOML)
        self._lock = (folder / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        told = {"kind": "started", "run": "r", "unit": "rounds", "total": ROUNDS, "done": 0}
        self._add("progress.jsonl", {**told, "sites": len(SITES)})
        for number in range(50):
            self._round(number)

    def step(self) -> None:
        """Let a second pass."""
        number, second = 50 + self._second // ROUND_S, self._second % ROUND_S
        self._second += 1
        for site in SITES[2 * second : 2 * second + 2]:
            told = {"kind": "site_answered", "round": number, "site": site}
            self._add("progress.jsonl", {**told, "answered": 2 * second, "sites": len(SITES)})
        if second == ROUND_S - 1:
            self._round(number)

    def _round(self, number: int) -> None:
        report = {
            "round": number,
            "sites": len(SITES),
            "metrics": {"loss": 2.0 / (number + 1), "accuracy": 1 - 0.5 / (number + 1)},
            "epsilon": dict.fromkeys(SITES, 0.8 * number**0.5),
            "bytes_up": 10**6,
            "seconds": {"total": 10.0, "train": 150.0},
        }
        self._add("metrics.jsonl", report)
        self._add("progress.jsonl", {"kind": "finished_round", "report": report})

    def _add(self, name: str, value: dict[str, Any]) -> None:
        with (self._folder / name).open("a") as stream:
            stream.write(json.dumps(value) + "\n")


async def view(port: int, received: list[int]) -> None:
    """Keep a page open, and count the bytes that come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /events?run=run HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
    try:
        while content := await reader.read(1 << 16):
            received[0] += len(content)
    finally:
        writer.close()


def cpu_s(process: int) -> float:
    """Return the processor's time that a process has taken, in seconds."""
    told = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


async def watched(run: Growing, port: int, process: int, viewers: int, seconds: int) -> float:
    """Return the share of a core that the page takes, and say it."""
    received = [0]
    tasks = [asyncio.create_task(view(port, received)) for _ in range(viewers)]
    await asyncio.sleep(3)
    before, began, received[0] = cpu_s(process), time.monotonic(), 0
    for _ in range(seconds):
        run.step()
        await asyncio.sleep(1)
    share = (cpu_s(process) - before) / (time.monotonic() - began)
    print(f"{viewers} viewers: {share:.1%} of a core, {received[0] / 1e6:.1f} MB sent")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return share


def main() -> None:
    """Measure with one viewer, and with many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a few viewers, three seconds")
    options = parser.parse_args()
    viewers, seconds = (5, 3) if options.quick else (options.viewers, options.seconds)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        run = Growing(folder)
        command = [sys.executable, "-m", "fedllm", "dashboard", str(folder), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
            try:
                line = page.stdout.readline() if page.stdout is not None else ""
                found = re.search(r":(\d+)/", line)
                if found is None:
                    raise SystemExit("the dashboard did not start")
                port = int(found[1])
                one = asyncio.run(watched(run, port, page.pid, 1, seconds))
                many = asyncio.run(watched(run, port, page.pid, viewers, seconds))
                print(f"many viewers / one: CPU {many / max(one, 0.001):.2f}")
            finally:
                page.terminate()


if __name__ == "__main__":
    main()
