"""A site's kit with a ledger that was charged, and its page served on loopback."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from support.kits import make_federation

from fedllm.federation.site.memory import SiteMemory
from fedllm.identity.kits import read_kit
from fedllm.overview.application import SitePage
from fedllm.overview.kit import read_site_kit
from fedllm.overview.standing import Look
from fedllm.privacy.accounting.events import Event, Gaussian
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.ledger import Ledger

CEILING = Ceiling(8.0, 1e-5)
TOKEN = "a token of the tests"
# Cheap to account, and no run is made of it.
ROUND = Gaussian(6.0)
POLICY = """
[model]
path = "model"
[data]
train = "postgresql://ward:${FEDLLM_DB_PASSWORD}@db.internal/clinic"
query = "SELECT note AS text, department AS label FROM notes ORDER BY 1"
[budget]
epsilon = 8.0
"""


@cache
def _federation() -> Path:
    """A federation to copy: one for all tests of a process."""
    made = tempfile.TemporaryDirectory()
    _KEPT.append(made)
    folder = Path(made.name) / "operator"
    make_federation(folder)
    return folder


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


class Site:
    """A site of a federation in a folder, whose service does not run."""

    def __init__(self, folder: Path, policy: str = POLICY) -> None:
        shutil.copytree(_federation(), folder / "operator")
        self.kit = folder / "operator" / "kits" / "anne"
        self.state = self.kit / "state"
        self.policy = folder / "site.toml"
        self.policy.write_text(policy)
        self._identity = read_kit(self.kit, "site").identity

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.sqlite"

    def charge(
        self,
        rounds: Sequence[int],
        event: Event = ROUND,
        released: bool = True,
        name: str = "ward",
        **more,
    ) -> None:
        """Charge rounds to the site's ledger, as its service would."""
        ledger = Ledger.open(self.ledger, "anne", self._identity)
        for number in rounds:
            charge = Charge("run-1", number, "", (event,), name=name, **more)
            reservation = ledger.reserve(charge, CEILING)
            if released:
                ledger.commit(reservation)
        SiteMemory(self.state / "memory.json").remember(ledger.head())

    def note(self, name: str, value: object) -> None:
        """Write what a service says of itself."""
        self.state.mkdir(exist_ok=True)
        (self.state / name).write_text(json.dumps(value))

    def did(self, *lines: dict[str, object]) -> None:
        """Write lines of the site's activity."""
        self.state.mkdir(exist_ok=True)
        with (self.state / "activity.jsonl").open("a") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)

    @contextmanager
    def running(self, **more: object) -> Iterator[None]:
        """Hold the service's lock, and say what a service says."""
        told = {
            "since": "2026-12-01T08:00:00+00:00",
            "process": 1,
            "version": "0",
            "policy": str(self.policy),
            "policy_sha256": "",
            "tasks": ["classification"],
            "connected": True,
            "linked": "2026-12-01T08:00:05+00:00",
        }
        self.note("service.json", {**told, **more})
        with (self.state / "client.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def look(self, policy: bool = True) -> Look:
        return Look(read_site_kit(self.kit), self.policy if policy else None)


def sent_line(number: int, **more: object) -> dict[str, object]:
    """A line of the activity on one update."""
    return {
        "at": f"2026-12-01T09:{number:02d}:00+00:00",
        "what": "sent",
        "run": "run-1",
        "name": "ward",
        "round": number,
        "rounds": 10,
        "attempt": number,
        "purpose": "training",
        "values": 36864,
        "bits": 16,
        "size_bytes": 221184,
        "scheme": "bfv",
        "masked": True,
        "noise": "local",
        **more,
    }


def under_way(**more: object) -> dict[str, object]:
    """What the service writes of the round that it is in."""
    return {
        "run": "run-1",
        "name": "ward",
        "round": 4,
        "rounds": 10,
        "attempt": 5,
        "purpose": "training",
        "since": "2026-12-01T09:30:00+00:00",
        "phase": "computing",
        **more,
    }


def ticking() -> float:
    """Return a time a long while after the last."""
    ticking.now += 10.0  # type: ignore[attr-defined]
    return float(ticking.now)  # type: ignore[attr-defined]


ticking.now = 0.0  # type: ignore[attr-defined]


@contextmanager
def serving(look: Look) -> Iterator[tuple[SitePage, str]]:
    """Serve a site's page on loopback, in a thread of this process; yields it and its address."""
    from fedllm.serving.server import Address, listening_socket, serve

    stop, listening, ports = threading.Event(), threading.Event(), list[int]()

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    page = SitePage(look, TOKEN, lambda line: None, ticking)
    arguments = (page, listening_socket(Address("127.0.0.1", 0)), None, stop, ready, 2.0)
    thread = threading.Thread(target=serve, args=arguments)
    thread.start()
    try:
        assert listening.wait(60)
        yield page, f"http://127.0.0.1:{ports[0]}"
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
