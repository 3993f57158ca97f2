"""A deployed federation on loopback: real processes, real TLS, in a folder of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.federation import records, write_jsonl
from support.ports import free_port

from fedllm.config import RunConfig, parse, to_toml
from fedllm.identity.config import FederationConfig
from fedllm.identity.provisioning import provision

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def wait_until(condition: Callable[[], Any], timeout_s: float = 900.0, what: str = "") -> Any:
    """Wait for a condition and return what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)
    return found


@dataclass
class Deployment:
    """Starts and kills the parties; `close` leaves no process behind."""

    folder: Path
    checkpoint: Path
    sites: tuple[str, ...] = ("site-00", "site-01", "site-02")
    port: int = field(default_factory=free_port)
    federation: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    inside: Callable[[str], list[str]] = lambda name: []
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = {
            "name": "test",
            "sites": list(self.sites),
            "coordinator": {"hosts": ["127.0.0.1"], "port": self.port},
            **self.federation,
        }
        provision(parse(FederationConfig, values, "test"), self.folder / "operator")
        for number, name in enumerate(self.sites):
            write_jsonl(self.folder / f"{name}.jsonl", records(30, seed=number))
            self.write_policy(name)

    def write_policy(self, name: str, **allow: Any) -> None:
        """Write a site's site.toml."""
        rules = {"min_cohort": 2, "non_private": True, **self.policy, **allow}
        lines = [f"{key} = {json.dumps(value)}" for key, value in rules.items()]
        text = [
            "[model]",
            f"path = {json.dumps(str(self.checkpoint))}",
            "[data]",
            f"train = {json.dumps(str(self.folder / f'{name}.jsonl'))}",
            "[budget]",
            "epsilon = 100.0",
            "[allow]",
            *lines,
        ]
        (self.folder / f"{name}.toml").write_text("\n".join(text) + "\n")

    def kit(self, name: str) -> Path:
        """Return a party's kit."""
        return self.folder / "operator" / "kits" / name

    def log(self, name: str) -> str:
        """Return what a party wrote to its log."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def start(self, *names: str) -> None:
        """Start parties, by name."""
        for name in names:
            role = {"coordinator": "server", "authority": "authority"}.get(name, "client")
            command = ["start", "--kit", str(self.kit(name))]
            if role == "client":
                command += ["--policy", str(self.folder / f"{name}.toml")]
            with (self.folder / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [*self.inside(name), sys.executable, "-m", "fedllm", role, *command],
                    stderr=log,
                    env=ENVIRONMENT,
                )

    def start_all(self) -> None:
        """Start everybody and wait until all are connected."""
        self.start("coordinator", "authority", *self.sites)
        self.wait_connected("authority", *self.sites)

    def status(self) -> dict[str, Any]:
        """Return the coordinator's status file."""
        path = self.kit("coordinator") / "state" / "status.json"
        return json.loads(path.read_text()) if path.exists() else {"nodes": [], "runs": []}

    def wait_connected(self, *names: str) -> None:
        """Wait until the named nodes are connected."""

        def all_there() -> bool:
            there = {node["name"] for node in self.status()["nodes"] if node["online"]}
            return set(names) <= there

        wait_until(all_there, what=f"connected: {names}; {self.log('coordinator')}")

    def kill(self, name: str) -> None:
        """Kill a party's process as a power cut would; its children die with it."""
        process = self.processes.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def fedllm(self, *arguments: str, timeout_s: float = 900.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "fedllm", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=ENVIRONMENT,
        )

    def submit(self, config: RunConfig, *options: str) -> subprocess.CompletedProcess[str]:
        """Hand a run to the coordinator."""
        path = self.folder / f"{config.name}.toml"
        path.write_text(to_toml(config))
        return self.fedllm("run", str(path), "--kit", str(self.kit("coordinator")), *options)

    def run_folder(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.kit("coordinator") / "state" / "runs" / name

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a run's metrics.jsonl."""
        path = self.run_folder(name) / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def close(self) -> None:
        """Stop all processes."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
