"""Show a run's progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; ``loss`` is the mean per target since the last report, in nats."""

    step: int
    steps: int
    tokens: int
    loss: float
    tokens_per_s: float
    seconds_left: float
    evaluation: dict[str, float] | None


class Observer(Protocol):
    """Somebody who watches a run."""

    def message(self, text: str) -> None:
        """Take a line about the run."""
        ...

    def advance(self, progress: Progress) -> None:
        """Take note of how far the run is."""
        ...

    def close(self) -> None:
        """The run is over, well or not."""
        ...


class Silent:
    """Watches nothing."""

    def message(self, text: str) -> None:
        """Ignore the line."""

    def advance(self, progress: Progress) -> None:
        """Ignore the report."""

    def close(self) -> None:
        """Do nothing."""


def describe(progress: Progress) -> str:
    """Return one line without a line end."""
    parts = [
        f"step {progress.step}/{progress.steps}",
        f"loss {progress.loss:.3f}",
        *_figures(progress.evaluation or {}),
        f"{progress.tokens_per_s:,.0f} tokens/s",
        f"{_duration(progress.seconds_left)} left",
    ]
    return "  ".join(parts)


def _figures(evaluation: dict[str, float]) -> list[str]:
    """Say the measures over all held-out text; those of single texts are in metrics.jsonl."""
    return [f"{k.replace('_', ' ')} {v:.3f}" for k, v in evaluation.items() if "/" not in k]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainLines:
    """Prints a line at each evaluation, and one in ten reports."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._reports = 0

    def message(self, text: str) -> None:
        """Print the line."""
        print(text, file=self._stream, flush=True)

    def advance(self, progress: Progress) -> None:
        """Print a line if it is time."""
        last = progress.step == progress.steps
        if progress.evaluation or last or self._reports % 10 == 0:
            self.message(describe(progress))
        self._reports += 1

    def close(self) -> None:
        """Do nothing."""


class Live:
    """A bar with rich."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: Any = None
        self._evaluation: dict[str, float] = {}

    def message(self, text: str) -> None:
        """Print the line above the bar."""
        from rich.console import Console

        (self._bar.console if self._bar else Console(stderr=True)).print(
            text, markup=False, highlight=False
        )

    def advance(self, progress: Progress) -> None:
        """Move the bar."""
        bar = self._bar = self._bar or self._start(progress.steps)
        self._evaluation = progress.evaluation or self._evaluation
        text = "  ".join([f"loss {progress.loss:.3f}", *_figures(self._evaluation)])
        bar.update(
            self._task,
            completed=progress.step,
            figures=f"{text}  {progress.tokens_per_s:,.0f} tokens/s  "
            f"{_duration(progress.seconds_left)} left",
        )

    def _start(self, steps: int) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("pretraining"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._task = bar.add_task("", total=steps, figures="")
        bar.start()
        return bar

    def close(self) -> None:
        """Take the bar away from the cursor."""
        if self._bar is not None:
            self._bar.stop()


def default_observer() -> Observer:
    """Return a bar if standard error is a terminal, else plain lines."""
    return Live() if sys.stderr.isatty() else PlainLines()
