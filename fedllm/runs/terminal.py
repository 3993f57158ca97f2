"""Show a run on a terminal: bars, or plain lines for logs and pipes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fedllm.identity.titles import shown
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.metrics import RoundReport
from fedllm.runs.observer import Observer, Start, StepReport
from fedllm.runs.pace import Pace
from fedllm.visible import visible
from fedllm.words import safe

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SILENCE_S = 15.0
_PHASES = {
    "join": "joining",
    "draw": "drawing neighbours",
    "train": "training",
    "evaluate": "evaluating at the sites",
    "ready": "seeing who is still there",
    "settle": "settling on the sum",
    "unmask": "taking masks off",
    "recover": "taking masks of lost sites off",
}


def describe_start(start: Start) -> str:
    """Say how long a run is, with how many sites, and where it goes on."""
    tail = f", going on after round {start.done}" if start.done else ""
    sites = f"{start.sites} sites, " if start.sites else ""
    return f"{sites}{start.total} rounds{tail}"


def describe_round(report: RoundReport, rounds: int) -> str:
    """Say one round's figures in a line."""
    parts = [f"round {report.round}/{rounds}"]
    if report.round:
        parts.append(f"{report.sites} sites")
    if report.dropped:
        parts.append(f"{len(report.dropped)} dropped")
    if report.kept_round is not None:
        parts.append(f"REJECTED, back to round {report.kept_round}")
    elif report.rejected:
        parts.append("REJECTED")
    for name in ("loss", "accuracy", "f1"):
        if report.metrics and name in report.metrics:
            parts.append(f"{name} {_number(report.metrics[name], 4)}")
    if report.site_metrics:
        told = ("f1", "accuracy", "loss")
        name = next((name for name in told if name in report.site_metrics), "loss")
        value, spread = (report.site_metrics.get(key) for key in (name, f"{name}_noise"))
        parts.append(f"at the sites {name} {_number(value, 3)} ± {_number(spread, 3)}")
    if report.epsilon:
        parts.append(f"epsilon {epsilon_text(report.largest_epsilon)}")
    if report.bytes_up:
        parts.append(f"{report.bytes_up / 2**20:.1f} MiB up")
    if report.seconds.get("total") is not None:
        parts.append(f"{report.seconds['total']:.1f} s")
    return "  ".join(parts)


def describe_phase(phase: str) -> str:
    """Say what sites are asked for in a part of a round."""
    return _PHASES.get(phase, phase)


def describe_answers(round: int, phase: str, answered: int, asked: int | None) -> str:
    """Say in a line how far a part of a round is."""
    of = "" if asked is None else f" of {asked}"
    return f"round {round}, {describe_phase(phase)}: {answered}{of} sites have answered"


def describe_step(report: StepReport) -> str:
    """Say in a line where pretraining stands."""
    return "  ".join([f"step {report.step}/{report.steps}", *_figures(report, report.evaluation)])


def _figures(report: StepReport, evaluation: dict[str, float] | None) -> list[str]:
    # The measures of single texts are in the run folder.
    measures = {k: v for k, v in (evaluation or {}).items() if "/" not in k}
    return [
        f"loss {_number(report.loss, 3)}",
        *(f"{name.replace('_', ' ')} {_number(v, 3)}" for name, v in measures.items()),
        f"{report.tokens_per_s:,.0f} tokens/s",
        f"{_duration(report.seconds_left)} left",
    ]


def _number(value: float | None, digits: int) -> str:
    return "not a number" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainObserver(Observer):
    """Writes one line a round; of pretraining one at each evaluation, and one in ten reports.

    While sites answer, one line each time that nothing was written for fifteen seconds.

    Parameters
    ----------
    stream : text stream, optional
        Standard error when left out.
    clock : callable, optional
        Tells the seconds.
    """

    def __init__(self, stream: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._pace = Pace(_SILENCE_S, clock)
        self._total = 0
        self._reports = 0

    def started(self, start: Start) -> None:
        """Say how long the run is."""
        self._total = start.total
        if start.unit == "steps":
            return
        self.note(describe_start(start))

    def note(self, text: str) -> None:
        """Write the message."""
        print(visible(text, keep="\n"), file=self._stream or sys.stderr, flush=True)
        self._pace.told()

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        """Write a line if nothing was written for a while."""
        if self._pace.due:
            self.note(describe_answers(round, phase, answered, asked))

    def finished_round(self, report: RoundReport) -> None:
        """Write the round's line."""
        self.note(describe_round(report, self._total))

    def advanced(self, report: StepReport) -> None:
        """Write a line if it is time."""
        if report.evaluation or report.step == report.steps or self._reports % 10 == 0:
            self.note(describe_step(report))
        self._reports += 1


class RichObserver(Observer):
    """Shows progress bars: rounds and the sites of the current one, or steps.

    Before there are bars, while sites join, lines as `PlainObserver` writes them.

    Parameters
    ----------
    clock : callable, optional
        Tells the seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self._pace = Pace(_SILENCE_S, clock)
        self._console = Console(stderr=True)
        self._bars: Progress | None = None
        self._main: TaskID | None = None
        self._sites: TaskID | None = None
        self._total = 0
        self._evaluation: dict[str, float] | None = None
        self._titles: Mapping[str, str] = {}

    def started(self, start: Start) -> None:
        """Draw the bars."""
        self.close()
        self._titles = start.titles
        if start.unit == "rounds" and start.done:
            self.note(describe_start(start))
        self._bars, self._total = _bars(self._console), start.total
        self._main = self._bars.add_task(
            start.unit, total=start.total, completed=start.done, detail=""
        )
        if start.sites:
            self._sites = self._bars.add_task("sites", total=start.sites, detail="")
        self._bars.start()

    def note(self, text: str) -> None:
        """Write the message above the bars."""
        console = self._bars.console if self._bars else self._console
        console.print(visible(text, keep="\n"), highlight=False, markup=False)
        self._pace.told()

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Move the bar of sites."""
        self._move(self._sites, answered, safe(shown(site, self._titles)), sites)

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        """Move the bar of sites, and say what they are asked for."""
        if self._bars is not None and self._sites is not None:
            words = safe(describe_phase(phase))
            self._bars.update(self._sites, description=words, completed=answered, total=asked)
        elif self._pace.due:
            self.note(describe_answers(round, phase, answered, asked))

    def finished_round(self, report: RoundReport) -> None:
        """Write the round's line and move the bar of rounds."""
        self.note(describe_round(report, self._total))
        self._move(self._main, report.round, "", self._total)

    def advanced(self, report: StepReport) -> None:
        """Move the bar of steps."""
        self._evaluation = report.evaluation or self._evaluation
        detail = "  ".join(_figures(report, self._evaluation))
        self._move(self._main, report.step, detail, report.steps)

    def _move(self, task: TaskID | None, done: int, detail: str, total: int) -> None:
        if self._bars is not None and task is not None:
            # What a site calls itself is text, not markup.
            self._bars.update(task, completed=done, total=total, detail=detail)

    def close(self) -> None:
        """Stop drawing."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def _bars(console: Any) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
        transient=False,
    )


def terminal_observer() -> Observer:
    """Return the observer that fits where standard error goes."""
    return RichObserver() if sys.stderr.isatty() else PlainObserver()
