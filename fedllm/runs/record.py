"""Read a finished run's folder: what was asked, what came out, and how each round went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig, parse, read_toml
from fedllm.errors import FedllmError
from fedllm.runs.metrics import RoundReport, read_reports
from fedllm.runs.names import METRICS, RUN_TOML
from fedllm.runs.plain_json import damaged
from fedllm.runs.summary import read_summary


@dataclass(frozen=True, slots=True)
class Round:
    """One line of ``metrics.jsonl``; round 0 is the evaluation before training.

    Attributes
    ----------
    number, sites : int
        Which round, and how many sites' updates are in it.
    dropped : tuple of str
        Sites that are not.
    metrics, epsilon, seconds : mapping of str to float
        Test metrics; spent so far by site; wall time by phase. What was not finite is left out.
    """

    number: int
    sites: int
    dropped: tuple[str, ...]
    metrics: Mapping[str, float]
    epsilon: Mapping[str, float]
    seconds: Mapping[str, float]


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
        """Epsilon at the end of the run by site; empty where it is not known."""
        last: dict[str, float] = {}
        for line in self.rounds:
            last.update(line.epsilon)
        return last

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a table of the summary; empty where it has none of that name."""
        value = self.summary.get(name)
        return value if isinstance(value, Mapping) else {}

    @property
    def sites(self) -> list[str]:
        """Names of the sites that appear anywhere in the rounds."""
        names = set(self.epsilon)
        for line in self.rounds:
            names.update(line.dropped)
        return sorted(names)


def read_run_folder(path: Path) -> RunFolder:
    """Read ``run.toml``, ``summary.json`` and ``metrics.jsonl``.

    Raises
    ------
    ConfigError
        If ``run.toml`` is missing or wrong.
    FedllmError
        If another file is missing or damaged; names the file and the line.
    """
    return RunFolder(
        path=path,
        config=read_config(path),
        summary=read_summary(path).model_dump(mode="json", exclude_unset=True),
        rounds=tuple(_round(report) for report in _reports(path / METRICS)),
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
        raise FedllmError(f"there is no file {path}", "give the folder of a finished run")
    reports = read_reports(path)
    if not reports:
        raise damaged(str(path), "holds no rounds")
    return reports


def _round(report: RoundReport) -> Round:
    return Round(
        number=report.round,
        sites=report.sites,
        dropped=tuple(report.dropped),
        metrics=_known(report.metrics),
        epsilon=_known(report.epsilon),
        seconds=_known(report.seconds),
    )


def _known(figures: Mapping[str, float | None] | None) -> dict[str, float]:
    return {name: value for name, value in (figures or {}).items() if value is not None}
