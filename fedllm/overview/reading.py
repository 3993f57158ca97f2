"""What a site's service wrote down of itself, read by the site's own people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.canonical import UNREADABLE, read_object
from fedllm.dashboard.files import require_plain
from fedllm.federation.site.brake import LOCK
from fedllm.locks import is_held
from fedllm.overview.values import number, text

_MOST_BYTES = 16 << 20
_MOST_NOTE_BYTES = 1 << 16


@dataclass(frozen=True)
class Service:
    """The service of a site.

    Attributes
    ----------
    runs : bool
        Whether it runs; what else it said of itself may be of an earlier time where it does not.
    since : str
        Since when its process works, in UTC; empty where it does not say.
    connected : bool, optional
        Whether its coordinator is connected; None where it does not run.
    linked : str
        Since when that is so.
    policy, policy_sha256 : str
        The policy that it goes by, as it was when it started.
    tasks : tuple of str, optional
        For which tasks it has read its records; None while it reads them.
    version : str
        Of fedllm.
    """

    runs: bool
    since: str = ""
    connected: bool | None = None
    linked: str = ""
    policy: str = ""
    policy_sha256: str = ""
    tasks: tuple[str, ...] | None = None
    version: str = ""


@dataclass(frozen=True)
class Running:
    """The round that a site is in.

    Attributes
    ----------
    run, name : str
        The run's identifier, and what people call it.
    round, rounds, attempt : int
        Which round, of how many, and which try of it.
    purpose : str
        "training" or "evaluation".
    since : str
        When it was begun, in UTC.
    phase : str
        "computing", or "waiting": the answer is made, and the other sites are waited for.
    until : str
        Until when the others are waited for at most; empty while it computes.
    """

    run: str
    name: str
    round: int
    rounds: int
    attempt: int
    purpose: str
    since: str
    phase: str
    until: str = ""


def read_service(state: Path) -> Service:
    """Read what the service says of itself; damaged, it says nothing."""
    runs = is_held(state / LOCK)
    told = _note(state / "service.json")
    try:
        tasks = told["tasks"]
        return Service(
            runs,
            text(told["since"]),
            bool(told["connected"]) if runs else None,
            text(told["linked"]),
            text(told["policy"]),
            text(told["policy_sha256"]),
            None if tasks is None else tuple(text(task) for task in tasks),
            text(told["version"]),
        )
    except UNREADABLE:
        return Service(runs)


def read_running(state: Path, service: Service) -> Running | None:
    """Read which round the site is in; None while it is in none."""
    told = _note(state / "under_way.json") if service.runs else {}
    try:
        return Running(
            text(told["run"]),
            text(told["name"]),
            number(told["round"]),
            number(told["rounds"]),
            number(told["attempt"]),
            text(told["purpose"]),
            text(told["since"]),
            text(told["phase"]),
            text(told.get("until", "")),
        )
    except UNREADABLE:
        return None


def read_activity(path: Path) -> list[Mapping[str, Any]]:
    """Read what the site was asked and sent; lines that cannot be read are left out."""
    try:
        require_plain(path)
        if path.stat().st_size > _MOST_BYTES:
            return []
        content = path.read_bytes()
    except OSError:
        return []
    found: list[Mapping[str, Any]] = []
    # What has no end yet is still being written.
    for line in content.split(b"\n")[:-1]:
        try:
            found.append(read_object(line))
        except UNREADABLE:
            continue
    return found


def _note(path: Path) -> dict[str, Any]:
    try:
        require_plain(path)
        with path.open("rb") as stream:
            return read_object(stream.read(_MOST_NOTE_BYTES))
    except (OSError, *UNREADABLE):
        return {}
