"""Read a finished run's folder: what was asked, what came out, and how each round went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig, parse, read_toml
from fedllm.errors import ConfigError
from fedllm.runs.metrics import RoundReport, read_reports
from fedllm.runs.names import LEDGERS, METRICS, POLICY_TOML, RUN_TOML, SUMMARY
from fedllm.runs.plain_json import damaged
from fedllm.runs.summary import read_summary

_MOST_RUNS = 5


@dataclass(frozen=True, slots=True)
class Round:
    """One line of ``metrics.jsonl``; round 0 is the evaluation before training.

    Attributes
    ----------
    number, sites : int
        Which round, and how many sites' updates are in it.
    dropped : tuple of str
        Sites that are not.
    metrics, seconds : mapping of str to float
        Test metrics; wall time by phase. What was not finite is left out.
    epsilon : mapping of str to float
        Spent so far by site; infinite where a private run's has no bound.
    not_finite : tuple of str
        Test metrics that were measured and were no number.
    rejected : tuple of str
        Why the round did not count; see `RoundReport.rejected`.
    norm_ratio : float, optional
        The sum's norm over an honest cohort's largest; None where that is not known.
    averaging_lost : float, optional
        Share of the mean change that averaging lost; see `RoundReport.averaging_lost`.
    """

    number: int
    sites: int
    dropped: tuple[str, ...]
    metrics: Mapping[str, float]
    epsilon: Mapping[str, float]
    seconds: Mapping[str, float]
    not_finite: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    norm_ratio: float | None = None
    averaging_lost: float | None = None


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run as it was recorded.

    Attributes
    ----------
    path : Path
        The folder.
    config : RunConfig
        As resolved when the run started.
    summary : dict
        ``summary.json``; which keys it has depends on the run.
    rounds : tuple of Round
        In order.
    """

    path: Path
    config: RunConfig
    summary: dict[str, Any]
    rounds: tuple[Round, ...]

    @property
    def epsilon(self) -> dict[str, float]:
        """Epsilon at the end of the run by site, perhaps infinite; empty where it is not known."""
        last: dict[str, float] = {}
        for line in self.rounds:
            last.update(line.epsilon)
        recorded = self.section("privacy").get("sites", {})
        if last or not isinstance(recorded, Mapping):
            return last
        return self._spent(recorded)

    @property
    def claimed_epsilon(self) -> float | None:
        """The summary's one epsilon, perhaps infinite; None where it tells none."""
        return self._spent(self.section("privacy")).get("epsilon")

    def _spent(self, figures: Mapping[str, Any]) -> dict[str, float]:
        # Null is an epsilon without a bound, or that of a run that promised none.
        unbounded = {name: inf for name, v in figures.items() if v is None and self.config.private}
        return unbounded | {name: float(v) for name, v in figures.items() if _is_number(v)}

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a table of the summary; empty where it has none of that name."""
        value = self.summary.get(name)
        return value if isinstance(value, Mapping) else {}

    @property
    def first_metrics(self) -> Mapping[str, float]:
        """Test metrics before training; empty where nothing was measured then."""
        measured = [line for line in self.rounds if line.metrics]
        return measured[0].metrics if measured and measured[0].number == 0 else {}

    @property
    def last_metrics(self) -> Mapping[str, float]:
        """Test metrics at the end, from the summary or else from the rounds."""
        recorded = self.section("metrics")
        measured = [line.metrics for line in self.rounds if line.metrics]
        return _known(recorded) or (measured[-1] if measured and not recorded else {})

    @property
    def titles(self) -> dict[str, str]:
        """Names of sites for people, for those that have one."""
        recorded = self.summary.get("site_titles")
        return dict(recorded) if isinstance(recorded, dict) else {}

    @property
    def simulated(self) -> bool:
        """Whether all parties were played on one machine."""
        recorded = self.summary.get("simulated")
        if isinstance(recorded, bool):
            return recorded
        # What only a simulation leaves, in folders that do not say it themselves.
        return (self.path / LEDGERS).is_dir() or (self.path / POLICY_TOML).is_file()

    def time(self, key: str) -> datetime | None:
        """Return a time that the summary recorded, with its zone; none without one."""
        value = self.summary.get(key)
        try:
            time = datetime.fromisoformat(value) if isinstance(value, str) else None
        except ValueError:
            return None
        return time if time is not None and time.tzinfo is not None else None

    @property
    def sites(self) -> list[str]:
        """Names of the sites that appear anywhere in the rounds."""
        names = set(self.epsilon)
        for line in self.rounds:
            names.update(line.dropped)
        return sorted(names)


def require_run(path: Path, finished: bool = True) -> None:
    """Refuse what is no run folder, in words for whoever gave the path.

    Raises
    ------
    ConfigError
        If there is nothing, or a file, a folder of runs, a folder of something else, or (where
        a ``finished`` run is needed) a run without its summary; says what to give instead.
    """
    kind = "a finished run" if finished else "a run"
    if not path.exists():
        raise ConfigError(f"there is no {path}", f"give the folder of {kind}, such as runs/NAME")
    if not path.is_dir():
        above = path.absolute().parents[:2]
        inside = next(
            (p for p in above if (p / RUN_TOML).exists() and (p / METRICS).exists()), None
        )
        remedy = f"give the run's folder: {inside}" if inside else f"give the folder of {kind}"
        raise ConfigError(f"{path} is a file, not the folder of a run", remedy)
    if not (path / RUN_TOML).exists():
        runs = runs_in(path)
        if runs:
            raise ConfigError(f"{path} is not a run, but a folder of runs", f"give one: {runs}")
        raise ConfigError(
            f"{path} is not the folder of a run: it has no {RUN_TOML}",
            f"give the folder of {kind}, such as runs/NAME",
        )
    if finished and not (path / SUMMARY).exists():
        raise ConfigError(
            f"the run in {path} is not finished: it has no {SUMMARY}",
            "finish it with the command that began it and --resume",
        )


def require_trained(path: Path) -> None:
    """Refuse the folder of an alignment, in which no site's records were trained on.

    Raises
    ------
    ConfigError
        Names the run that it began with.
    """
    if not (path / SUMMARY).exists():
        return
    summary = read_summary(path)
    if summary.alignment:
        raise ConfigError(
            f"{path} was aligned on public prompts, and no site's records were read for it",
            f"give the folder of the run that it began with, {summary.started_from.get('run')}",
        )


def runs_in(path: Path) -> str:
    """Name the first run folders in a folder; nothing where there are none."""
    found = sorted(str(one.parent) for one in path.glob(f"*/{RUN_TOML}"))
    more = f", and {len(found) - _MOST_RUNS} more" if len(found) > _MOST_RUNS else ""
    return ", ".join(found[:_MOST_RUNS]) + more


def read_run_folder(path: Path) -> RunFolder:
    """Read ``run.toml``, ``summary.json`` and ``metrics.jsonl``.

    Raises
    ------
    ConfigError
        If it is no run folder, or a file is missing, damaged or wrong; names the file and the
        line.
    """
    require_run(path)
    config = read_config(path)
    return RunFolder(
        path=path,
        config=config,
        summary=read_summary(path).model_dump(mode="json", exclude_unset=True),
        rounds=tuple(_round(report, config.private) for report in _reports(path / METRICS)),
    )


def read_config(folder: Path) -> RunConfig:
    """Read a run folder's ``run.toml``.

    Raises
    ------
    ConfigError
        If it is missing or wrong.
    """
    path = folder / RUN_TOML
    return parse(RunConfig, read_toml(path), str(path))


def _reports(path: Path) -> list[RoundReport]:
    if not path.exists():
        raise ConfigError(f"there is no file {path}", "give the folder of a finished run")
    reports = read_reports(path)
    if not reports:
        raise damaged(str(path), "holds no rounds")
    return reports


def _round(report: RoundReport, private: bool) -> Round:
    return Round(
        number=report.round,
        sites=report.sites,
        dropped=tuple(report.dropped),
        metrics=_known(report.metrics),
        epsilon=report.spent if private else _known(report.epsilon),
        seconds=_known(report.seconds),
        not_finite=tuple(name for name, value in (report.metrics or {}).items() if value is None),
        rejected=tuple(report.rejected),
        norm_ratio=report.norm_ratio,
        averaging_lost=report.averaging_lost,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _known(figures: Mapping[str, float | None] | None) -> dict[str, float]:
    return {name: value for name, value in (figures or {}).items() if value is not None}
