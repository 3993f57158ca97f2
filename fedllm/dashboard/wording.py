"""How a run stands, in words."""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.dashboard.following import Seen
from fedllm.runs.terminal import describe_phase
from fedllm.visible import visible

_RECENT = 5
_LONGEST_S = 1e11
_STATES = {
    "queued": "queued: a coordinator has it, and no process works on it now",
    "running": "running",
    "stopped": "stopped: no process works on it",
    "finished": "finished",
    "failed": "failed",
    "cancelled": "cancelled",
}


@dataclass(frozen=True)
class RunWords:
    """What stands at the top of a run's page.

    Attributes
    ----------
    name, what : str
        The run's name, and what it is.
    state, left : str
        How it stands, and how much longer it takes, in words.
    done, total, percent : int
        Rounds or steps.
    unit : {"rounds", "steps"}
        What is counted.
    under : str
        What is under way.
    error, remedy : str
        Of a run that failed.
    """

    name: str
    what: str
    state: str
    left: str
    done: int
    total: int
    percent: int
    unit: str
    under: str
    error: str
    remedy: str


def words_of(seen: Seen) -> RunWords:
    """Say how a run stands."""
    done, total, unit = _progress(seen)
    return RunWords(
        name_of(seen),
        what_of(seen),
        _STATES[seen.state],
        _left(seen),
        done,
        total,
        round(100 * min(1.0, done / total)) if total else 0,
        unit,
        _under(seen),
        visible(seen.error.get("message", "")),
        visible(seen.error.get("remedy", "")),
    )


def name_of(seen: Seen) -> str:
    """Return a run's own name, or its folder's."""
    if seen.config is not None and seen.kind == "run":
        return visible(seen.config.name)
    if seen.summary is not None and seen.summary.run:
        return visible(seen.summary.run)
    return visible(seen.folder.name)


def what_of(seen: Seen) -> str:
    """Say in a few words what is done in a folder."""
    if seen.kind == "pretraining":
        return "pretraining on public text"
    recorded = seen.summary.task if seen.summary is not None else ""
    task = (seen.config.task if seen.config is not None else recorded).replace("_", " ")
    kind = "alignment on public prompts" if seen.kind == "alignment" else "federated run"
    return f"{kind}, {task}" if task else kind


def _progress(seen: Seen) -> tuple[int, int, str]:
    if seen.kind != "pretraining":
        return seen.done, seen.total, "rounds" if seen.kind == "run" else "steps"
    step = seen.steps[-1].get("step") if seen.steps else 0
    return (step if isinstance(step, int) else 0), 0, "steps"


def _left(seen: Seen) -> str:
    """Say how much longer a run takes, by the pace of its last rounds."""
    if seen.state != "running" or not seen.total:
        return ""
    trained = [r.seconds.get("total") for r in seen.reports if r.round]
    recent = [value for value in trained[-_RECENT:] if value]
    left = seen.total - seen.done
    if not recent or left <= 0:
        return "" if recent else "how long it takes is known after the first round"
    return f"about {duration(left * sum(recent) / len(recent))} left after round {seen.done}"


def _under(seen: Seen) -> str:
    under = seen.under
    if seen.state != "running" or not under.round:
        return ""
    if not under.phase:
        return f"round {under.round} begins" if under.round <= seen.total else "finishing"
    of = f" of {under.asked}" if under.asked else ""
    return f"round {under.round}, {describe_phase(under.phase)}: {under.answered}{of} have answered"


def duration(seconds: float) -> str:
    """Write a time as people say it: two units at most."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds > _LONGEST_S:
        return "over 3000 years"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def size(count: float) -> str:
    """Write a number of bytes with a decimal unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return (
                f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
            )
        count /= 1000
    return f"{count:.1f} TB"
