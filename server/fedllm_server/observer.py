"""What a run tells while it goes on, and the two ways to show it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from fedllm.files import append_line
from fedllm.visible import visible
from fedllm.words import safe
from fedllm_server.metrics import RoundReport


class Observer(Protocol):
    """Hears what happens in a run."""

    def started(self, rounds: int, sites: int, done: int) -> None:
        """Hear that a run begins or goes on after round ``done``."""

    def note(self, text: str) -> None:
        """Hear a message for the person who watches."""

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Hear that one site's update is in the sum."""

    def finished_round(self, report: RoundReport) -> None:
        """Hear the figures of a finished round."""

    def close(self) -> None:
        """Hear that the run is over."""


def describe(report: RoundReport, rounds: int) -> str:
    """Say one round's figures in a line."""
    parts = [f"round {report.round}/{rounds}"]
    if report.round:
        parts.append(f"{report.sites} sites")
    if report.dropped:
        parts.append(f"{len(report.dropped)} dropped")
    for name in ("loss", "accuracy"):
        if report.metrics and name in report.metrics:
            parts.append(f"{name} {report.metrics[name]:.4f}")
    if report.site_metrics:
        name = "accuracy" if "accuracy" in report.site_metrics else "loss"
        value, spread = report.site_metrics[name], report.site_metrics[f"{name}_noise"]
        parts.append(f"at the sites {name} {value:.3f} ± {spread:.3f}")
    if report.epsilon:
        parts.append(f"epsilon {max(report.epsilon.values()):.2f}")
    if report.bytes_up:
        parts.append(f"{report.bytes_up / 2**20:.1f} MiB up")
    if "total" in report.seconds:
        parts.append(f"{report.seconds['total']:.1f} s")
    return "  ".join(parts)


class PlainObserver:
    """Writes one line a round, for logs and pipes."""

    def __init__(self) -> None:
        self._rounds = 0

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def started(self, rounds: int, sites: int, done: int) -> None:
        """Say how long the run is."""
        self._rounds = rounds
        tail = f", going on after round {done}" if done else ""
        self._print(f"{sites} sites, {rounds} rounds{tail}")

    def note(self, text: str) -> None:
        """Write the message."""
        self._print(visible(text, keep="\n"))

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Stay silent: a line for each site would drown the rounds."""

    def finished_round(self, report: RoundReport) -> None:
        """Write the round's line."""
        self._print(describe(report, self._rounds))

    def close(self) -> None:
        """Have nothing to put away."""


class FileObserver:
    """Writes what happens as lines of JSON, for those who watch from another process.

    Parameters
    ----------
    path : Path
        ``progress.jsonl``; `replay` reads it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, kind: str, **values: Any) -> None:
        append_line(self._path, json.dumps({"kind": kind, **values}, ensure_ascii=False))

    def started(self, rounds: int, sites: int, done: int) -> None:
        """Note how long the run is."""
        self._write("started", rounds=rounds, sites=sites, done=done)

    def note(self, text: str) -> None:
        """Note the message."""
        self._write("note", text=text)

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Note who answered."""
        self._write("site_answered", round=round, site=site, answered=answered, sites=sites)

    def finished_round(self, report: RoundReport) -> None:
        """Note the round's figures."""
        self._write("finished_round", report=asdict(report))

    def close(self) -> None:
        """Have nothing to put away."""


def replay(line: str, observer: Observer) -> None:
    """Tell an observer what a line of a `FileObserver` says."""
    value = json.loads(line)
    kind = value.pop("kind")
    if kind == "finished_round":
        value = {"report": RoundReport(**value["report"])}
    getattr(observer, kind)(**value)


class RichObserver:
    """Shows a progress bar with the sites of the current round on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
            transient=False,
        )
        self._rounds = 0

    def started(self, rounds: int, sites: int, done: int) -> None:
        """Draw the bars."""
        self._rounds = rounds
        self._round = self._progress.add_task("rounds", total=rounds, completed=done, detail="")
        self._sites = self._progress.add_task("sites", total=sites, detail="")
        self._progress.start()

    def note(self, text: str) -> None:
        """Write the message above the bars."""
        text = visible(text, keep="\n")
        self._progress.console.print(text, highlight=False, markup=False)

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Move the bar of sites."""
        self._progress.update(self._sites, completed=answered, total=sites, detail=safe(site))

    def finished_round(self, report: RoundReport) -> None:
        """Write the round's line and move the bar of rounds."""
        self.note(describe(report, self._rounds))
        if report.round:
            self._progress.update(self._round, completed=report.round)

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()


def default_observer() -> Observer:
    """Return the observer that fits where standard error goes."""
    return RichObserver() if sys.stderr.isatty() else PlainObserver()
