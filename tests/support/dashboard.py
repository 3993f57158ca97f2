"""Run folders as they look while a run writes them, and the dashboard served on loopback."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.run_folder import SITES, rounds, run_config

from fedllm.config import to_toml
from fedllm.dashboard.application import Dashboard
from fedllm.dashboard.watching import Runs
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.entries import _SIGNATURE_LABEL
from fedllm.runs import names


class Clock:
    """Tells the time that a test says; each look a long while after the last."""

    def __init__(self, step_s: float = 10.0) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def add_line(path: Path, value: object, end: str = "\n") -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(value) + end)


class Growing:
    """A run that a process writes: its lock is held, and its rounds come one by one."""

    def __init__(self, folder: Path, **changes) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        (folder / names.RUN_TOML).write_text(to_toml(run_config(**changes)))
        self._lines = rounds()
        self._lock = (folder / names.LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        add_line(
            folder / names.PROGRESS,
            {"kind": "started", "run": "r", "unit": "rounds", "total": 5, "done": 0, "sites": 4},
        )

    def round(self, more: dict[str, object] | None = None) -> None:
        """End a round."""
        report = {**self._lines.pop(0), **(more or {})}
        add_line(self.folder / names.METRICS, report)
        add_line(self.folder / names.PROGRESS, {"kind": "finished_round", "report": report})

    def answered(self, number: int, *sites: str) -> None:
        """Let sites answer in a round that is under way."""
        told = {"kind": "answering", "round": number, "phase": "train", "answered": 0, "asked": 4}
        add_line(self.folder / names.PROGRESS, told)
        for count, site in enumerate(sites, 1):
            told = {"kind": "site_answered", "round": number, "site": site}
            add_line(self.folder / names.PROGRESS, told | {"answered": count, "sites": 4})

    def die(self) -> None:
        """Let the process end, however it does."""
        self._lock.close()


def sign_heads(folder: Path, keys: Path, forged: str = "") -> None:
    """Write a roster and a head of each site's ledger, one of them not signed by its site."""
    own = {}
    for name in (*SITES, "authority"):
        Identity.generate(name).save(keys / name)
        own[name] = Identity.load(name, keys / name)
    public = {name: one.public_bytes() for name, one in own.items()}
    roster = Roster(public["authority"], {name: public[name] for name in SITES})
    (folder / names.ROSTER).write_text(roster.to_json())
    for number, name in enumerate(SITES, 1):
        digest = bytes([number]) * 32
        signer = own["authority" if name == forged else name]
        head = {"run": "r", "round": 1, "site": name, "head": f"{number}:{digest.hex()}"}
        add_line(
            folder / names.HEADS, head | {"signature": signer.sign(_SIGNATURE_LABEL + digest).hex()}
        )


@contextmanager
def serving(*folders: Path) -> Iterator[str]:
    """Serve runs on loopback, in a thread of this process; yields the address."""
    from fedllm.serving.server import Address, listening_socket, serve

    stop, listening, ports = threading.Event(), threading.Event(), list[int]()

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    served = Dashboard(Runs(folders), lambda line: None)
    arguments = (served, listening_socket(Address("127.0.0.1", 0)), None, stop, ready, 2.0)
    thread = threading.Thread(target=serve, args=arguments)
    thread.start()
    try:
        assert listening.wait(30)
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
