"""The sites of a run and how each stands, by what the run's folder says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedllm.canonical import UNREADABLE, read_object
from fedllm.dashboard.files import require_plain
from fedllm.identity.titles import shown
from fedllm.locks import is_held

if TYPE_CHECKING:
    from fedllm.dashboard.following import Seen

Standing = Literal["in", "waiting", "late", "left out", "idle"]
_SILENT = "did not answer"
_MOST_WORDS = 240
_STATUS, _LOCK, _RUNS = "status.json", "server.lock", "runs"
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Site:
    """A site of a run.

    Attributes
    ----------
    name, shown : str
        Its name, and with its title for people.
    standing : {"in", "waiting", "late", "left out", "idle"}
        "in": its update is in the sum of the round; "waiting": its answer has not come yet;
        "late": it did not answer in the last round; "left out": it refused, or was refused; "idle":
        nothing is under way.
    words : str
        The standing in words, with the reason.
    rounds : int
        How many finished rounds it was in.
    left_out : int
        How many it was not in though it should have been.
    connected : bool, optional
        None where nobody knows.
    """

    name: str
    shown: str
    standing: Standing
    words: str
    rounds: int
    left_out: int
    connected: bool | None


def sites_of(seen: Seen) -> list[Site]:
    """Return all sites that a run's folder names, by name."""
    known = _names(seen)
    return [_site(name, seen) for name in known]


def _names(seen: Seen) -> list[str]:
    found: set[str] = set(seen.heads.newest) | set(seen.under.in_sum)
    if seen.summary is not None:
        found.update(seen.summary.site_names)
    for report in seen.reports:
        found.update(report.epsilon, report.dropped)
    found.update(name for name in seen.heads.keys if name != "authority")
    return sorted(found)


def _site(name: str, seen: Seen) -> Site:
    trained = [report for report in seen.reports if report.round]
    left_out = sum(name in report.dropped for report in trained)
    standing, words = _standing(name, seen)
    return Site(
        name,
        shown(name, seen.titles),
        standing,
        words,
        _rounds(name, seen),
        left_out,
        seen.connected.get(name),
    )


def _rounds(name: str, seen: Seen) -> int:
    """Count the finished rounds that a site was in: by what it signed, else by its epsilon."""
    if name in seen.heads.newest:
        return min(seen.heads.newest[name].rounds, seen.done)
    return sum(name in report.epsilon and name not in report.dropped for report in seen.reports)


def _standing(name: str, seen: Seen) -> tuple[Standing, str]:
    under, last = seen.under, seen.reports[-1] if seen.reports else None
    if seen.state == "running" and under.phase:
        if name in under.in_sum:
            return "in", f"has answered in round {under.round}"
        if under.phase == "train":
            return "waiting", f"trains, or has not answered yet in round {under.round}"
    if last is not None and name in last.dropped:
        reason = last.dropped[name] or "no reason was written down"
        late = _SILENT in reason
        return "late" if late else "left out", f"not in round {last.round}: {_short(reason)}"
    if last is not None and last.round:
        return "idle" if seen.over else "in", f"was in round {last.round}"
    return "idle", "has not been in a round yet"


def _short(words: str) -> str:
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}..."


def connected_in(folder: Path) -> dict[str, bool]:
    """Return who is connected, as the coordinator that carries the run wrote it down.

    Empty where no coordinator's folder is beside the run, and while none runs there.
    """
    if folder.absolute().parent.name != _RUNS:
        return {}
    state = folder.absolute().parents[1]
    try:
        path = state / _STATUS
        require_plain(path)
        if path.stat().st_size > _MOST_BYTES or not is_held(state / _LOCK):
            return {}
        nodes = list(read_object(path.read_bytes())["nodes"])
        return {str(node["name"]): bool(node["online"]) for node in nodes}
    except (OSError, *UNREADABLE):
        return {}
