"""What a site's service says of itself to the site's own people: since when, by which policy."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedllm import __version__
from fedllm.canonical import canonical_json, sha256_hex
from fedllm.clock import utc_now
from fedllm.errors import FedllmError
from fedllm.files import write_bytes

NAME = "service.json"


class ServiceNote:
    """Keeps ``service.json`` beside the ledger; what cannot be written is not shown.

    Parameters
    ----------
    folder : Path
        The site's state.
    policy : Path
        The policy by which the service goes until it starts anew.
    clock : callable, optional
        Tells the time in words.
    """

    def __init__(self, folder: Path, policy: Path, clock: Callable[[], str] = utc_now) -> None:
        self._path, self._clock = folder / NAME, clock
        self._told: dict[str, object] = {
            "since": clock(),
            "process": os.getpid(),
            "version": __version__,
            "policy": str(policy.absolute()),
            "policy_sha256": sha256_hex(policy.read_bytes()),
            "tasks": None,
        }
        # Of a process that was killed in a round.
        with suppress(OSError):
            (folder / "under_way.json").unlink()
        self.linked(False)

    def reads(self, tasks: tuple[str, ...]) -> None:
        """Note that the records are read, and for which tasks."""
        self._told["tasks"] = list(tasks)
        self._write()

    def linked(self, connected: bool) -> None:
        """Note whether the coordinator is connected, and since when."""
        if self._told.get("connected") is connected:
            return
        self._told |= {"connected": connected, "linked": self._clock()}
        self._write()

    def _write(self) -> None:
        with suppress(OSError, FedllmError):
            write_bytes(self._path, canonical_json(self._told), durable=False)
