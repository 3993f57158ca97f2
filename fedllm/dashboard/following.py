"""One run as its folder tells of it, from queued to finished, also while it is written."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedllm.config import RunConfig
from fedllm.dashboard.files import Kept, Lines, require_plain
from fedllm.dashboard.signed import Heads, HeadsRead
from fedllm.dashboard.sites import connected_in
from fedllm.errors import FedllmError
from fedllm.identity.titles import titles_beside
from fedllm.locks import is_held
from fedllm.runs import names
from fedllm.runs.job import ACTIVE, Job, read_job
from fedllm.runs.metrics import RoundReport
from fedllm.runs.observer import Observer, Start
from fedllm.runs.plain_json import parse_object, to_text
from fedllm.runs.progress import replay
from fedllm.runs.record import read_config
from fedllm.runs.shelf import Kind, kind_of
from fedllm.runs.summary import Summary, read_summary

State = Literal["queued", "running", "stopped", "finished", "failed", "cancelled"]
Value = TypeVar("Value")
# What is to be had of a run; nothing else of its folder is. ``run.toml`` may hold a password.
DOWNLOADS = (
    names.REPORT,
    names.REPORT_TWIN,
    names.SUMMARY,
    names.METRICS,
    names.HEADS,
    names.ROSTER,
    names.RELEASE,
    names.WITHDRAWN,
)
_MOST_NOTES, _MOST_PROBLEMS = 100, 20


@dataclass(frozen=True)
class Under:
    """What is under way in a run; nothing where it does not say so.

    Attributes
    ----------
    round : int
        Which round.
    phase : str
        Of the round, as observers are told it; empty between two.
    answered, asked : int
        Sites that have answered in the phase, and that were asked; 0 where nobody knows.
    in_sum : frozenset of str
        Sites that have answered in this round.
    """

    round: int = 0
    phase: str = ""
    answered: int = 0
    asked: int = 0
    in_sum: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Seen:
    """All that a run's folder says.

    Attributes
    ----------
    folder : Path
        The run's.
    kind : {"run", "alignment", "pretraining"}
        What is done in it.
    state : str
        "queued" (at a coordinator, and no process works on it now), "running", "stopped" (not
        finished, and no process works on it), "finished", "failed" or "cancelled".
    config : RunConfig, optional
        None where it cannot be read, as of another version.
    reports : tuple of RoundReport
        Of the rounds that are done.
    steps : tuple of dict
        Of pretraining: its reports.
    under : Under
        What is under way.
    total, sites : int
        Rounds in all, and sites that take part; 0 where nobody knows.
    titles : mapping of str to str
        Names of sites for people.
    notes : tuple of str
        What the run told people, the latest last.
    summary : Summary, optional
        Once it is finished.
    error : mapping of str to str
        Why it failed: "message" and "remedy"; empty otherwise.
    heads : Heads
        What sites signed.
    connected : mapping of str to bool
        Whether a party is connected, where a coordinator beside the folder says so.
    files : mapping of str to int
        Names of those of `DOWNLOADS` that are there, and their sizes in bytes.
    problems : tuple of str
        What could not be read.
    """

    folder: Path
    kind: Kind = "run"
    state: State = "stopped"
    config: RunConfig | None = None
    reports: tuple[RoundReport, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    under: Under = Under()
    total: int = 0
    sites: int = 0
    titles: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    summary: Summary | None = None
    error: Mapping[str, str] = field(default_factory=dict)
    heads: Heads = field(default_factory=Heads)
    connected: Mapping[str, bool] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Whether nothing more comes, unless somebody resumes it."""
        return self.state in ("finished", "failed", "cancelled", "stopped")

    @property
    def done(self) -> int:
        """Rounds that are done."""
        return self.reports[-1].round if self.reports else 0


class Follower:
    """Looks at a run's folder again and again, and reads what is new.

    Parameters
    ----------
    folder : Path
        The run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = threading.Lock()
        self._problems: dict[str, str] = {}
        self._config = Kept(folder / names.RUN_TOML, self._careful(_config))
        self._summary = Kept(
            folder / names.SUMMARY, self._careful(lambda p: read_summary(p.parent))
        )
        self._job = Kept(folder / names.JOB, self._careful(lambda p: read_job(p.parent)))
        self._metrics, self._progress = (
            Lines(folder / names.METRICS),
            Lines(folder / names.PROGRESS),
        )
        self._heads = HeadsRead(folder)
        self._kept: tuple[Kept[Any], ...] = (self._config, self._summary, self._job)
        self._told = _Told()
        self._reports: list[RoundReport] = []
        self._steps: list[Mapping[str, Any]] = []
        self._seen: Seen | None = None

    def look(self) -> Seen:
        """Return what the folder says now; the same object as before if that is the same."""
        with self._turn:
            return self._look()

    def _look(self) -> Seen:
        kind = kind_of(self._folder)
        changed = [kept.look() for kept in self._kept]
        changed.append(self._read(self._metrics, kind))
        changed.append(self._read_progress(kind))
        heads = self._heads.look(self._say)
        state, connected, files = self._state(), connected_in(self._folder), self._files()
        before = self._seen
        if (
            before is None
            or any(changed)
            or (state, connected, files, heads)
            != (before.state, before.connected, before.files, before.heads)
        ):
            self._seen = self._new(kind, state, connected, files, heads)
        return self._seen if self._seen is not None else Seen(self._folder)

    def _new(
        self,
        kind: Kind,
        state: State,
        connected: Mapping[str, bool],
        files: Mapping[str, int],
        heads: Heads,
    ) -> Seen:
        config, summary, job, told = (
            self._config.value,
            self._summary.value,
            self._job.value,
            self._told,
        )
        planned = config.rounds.count if config is not None and kind == "run" else 0
        recorded = summary.site_titles if summary is not None else {}
        return Seen(
            self._folder,
            kind,
            state,
            config,
            tuple(self._reports),
            tuple(self._steps),
            told.under if state == "running" else Under(),
            planned or told.total or (summary.rounds if summary is not None else 0),
            (summary.sites if summary is not None else 0) or told.sites,
            recorded or told.titles or titles_beside(self._folder),
            tuple(told.notes),
            summary,
            (job.error or {}) if job is not None and state == "failed" else {},
            heads,
            connected,
            files,
            tuple(self._problems.values())[-_MOST_PROBLEMS:],
        )

    def _careful(self, make: Callable[[Path], Value]) -> Callable[[Path], Value | None]:
        """Make what tells a problem instead of raising it, and takes it back when it is mended."""

        def read(path: Path) -> Value | None:
            self._problems.pop(path.name, None)
            try:
                require_plain(path)
                return make(path)
            except FedllmError as error:
                self._say(path.name, str(error.message))
            except OSError as error:
                self._say(path.name, f"{path} cannot be read ({error.strerror})")
            return None

        return read

    def _say(self, where: str, what: str) -> None:
        self._problems[where] = what

    def _new_lines(self, lines: Lines) -> tuple[bool, list[bytes]]:
        name = lines.path.name
        try:
            another, new = lines.new()
        except OSError as error:
            self._say(name, f"{lines.path} cannot be read ({error.strerror})")
            return False, []
        if another:
            self._problems = {k: v for k, v in self._problems.items() if not k.startswith(name)}
        return another, new

    def _read(self, lines: Lines, kind: Kind) -> bool:
        another, new = self._new_lines(lines)
        if another:
            self._reports, self._steps = [], []
        for line in new:
            after = f" after round {self._reports[-1].round}" if self._reports else ", line 1"
            where = f"{lines.path.name}{after}"
            try:
                value = parse_object(to_text(line, where), where, nan=True)
                if kind == "pretraining":
                    self._steps.append(value)
                    continue
                report = RoundReport.parse(value, where)
            except FedllmError as error:
                self._say(where, f"{error.message}; the line is left out")
                continue
            if self._reports and report.round <= self._reports[-1].round:
                self._say(where, f"{where}: round {report.round} once more; the line is left out")
                continue
            self._reports.append(report)
        return another or bool(new)

    def _read_progress(self, kind: Kind) -> bool:
        config = self._config.value
        if config is None or kind == "pretraining":
            return False
        another, new = self._new_lines(self._progress)
        if another:
            self._told = _Told()
        for line in new:
            where = self._progress.path.name
            try:
                replay(line, where, config, self._told)
            except FedllmError:
                # A crash cut it off; nothing is worked out from these lines.
                continue
        return another or bool(new)

    def _state(self) -> State:
        job: Job | None = self._job.value
        if job is not None and job.status not in ACTIVE:
            return job.status  # type: ignore[return-value]
        if self._summary.value is not None:
            return "finished"
        if is_held(self._folder / names.LOCK):
            return "running"
        # A coordinator that runs takes it up, or starts its process again.
        return "queued" if job is not None else "stopped"

    def _files(self) -> dict[str, int]:
        found = {}
        for name in DOWNLOADS:
            path = self._folder / name
            with suppress(OSError):
                require_plain(path)
                found[name] = path.stat().st_size
        return found


def _config(path: Path) -> RunConfig | None:
    # Pretraining has keys of its own, and none of them is shown.
    return None if kind_of(path.parent) == "pretraining" else read_config(path.parent)


class _Told(Observer):
    """What ``progress.jsonl`` told so far."""

    def __init__(self) -> None:
        self.total = self.sites = 0
        self.titles: dict[str, str] = {}
        self.notes: deque[str] = deque(maxlen=_MOST_NOTES)
        self.under = Under()

    def started(self, start: Start) -> None:
        """Note how long the run is."""
        self.total, self.sites, self.titles = start.total, start.sites, dict(start.titles)
        self.under = Under(start.done + 1)

    def note(self, text: str) -> None:
        """Note a message."""
        self.notes.append(text)

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Note who has answered."""
        known = self.under.in_sum if self.under.round == round else frozenset[str]()
        phase = self.under.phase or "train"
        self.under = Under(round, phase, answered, sites, known | {site})

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        """Note how far a phase is."""
        known = self.under.in_sum if self.under.round == round else frozenset[str]()
        self.under = Under(round, phase, answered, asked or 0, known)

    def finished_round(self, report: RoundReport) -> None:
        """Note that the next round begins."""
        self.under = Under(report.round + 1)
