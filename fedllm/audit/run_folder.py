"""Read a finished run's folder: what was asked, what came out, and how each round went."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig, parse, read_toml
from fedllm.errors import ConfigError

PHASES = ("train", "encrypt", "aggregate", "decrypt", "evaluate")


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
        Test metrics; spent so far by site; wall time by phase.
    not_finite : tuple of str
        Test metrics that were measured and were no number.
    """

    number: int
    sites: int
    dropped: tuple[str, ...]
    metrics: Mapping[str, float]
    epsilon: Mapping[str, float]
    seconds: Mapping[str, float]
    not_finite: tuple[str, ...] = ()


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
    def first_metrics(self) -> Mapping[str, float]:
        """Test metrics before training; empty where nothing was measured then."""
        measured = [line for line in self.rounds if line.metrics]
        return measured[0].metrics if measured and measured[0].number == 0 else {}

    @property
    def last_metrics(self) -> Mapping[str, float]:
        """Test metrics at the end, from the summary or else from the rounds."""
        recorded = self.section("metrics")
        last = {
            name: float(value)
            for name, value in recorded.items()
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        }
        measured = [line.metrics for line in self.rounds if line.metrics]
        return last or (measured[-1] if measured and not recorded else {})

    @property
    def simulated(self) -> bool:
        """Whether all parties were played on one machine."""
        recorded = self.summary.get("simulated")
        if isinstance(recorded, bool):
            return recorded
        # What only a simulation leaves, in folders that do not say it themselves.
        return (self.path / "ledgers").is_dir() or (self.path / "policy.toml").is_file()

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


def read_run_folder(path: Path) -> RunFolder:
    """Read ``run.toml``, ``summary.json`` and ``metrics.jsonl``.

    Raises
    ------
    ConfigError
        If a file is missing, damaged or wrong; names the file and the line.
    """
    return RunFolder(
        path=path,
        config=parse(RunConfig, read_toml(path / "run.toml"), str(path / "run.toml")),
        summary=_read_summary(path / "summary.json"),
        rounds=tuple(_read_rounds(path / "metrics.jsonl")),
    )


def _damaged(where: str, what: str) -> ConfigError:
    return ConfigError(
        f"{where}: {what}",
        "a report is not made from damaged records; repeat the run or restore the file",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", "give the folder of a finished run") from None
    except (OSError, UnicodeDecodeError):
        raise _damaged(str(path), "cannot be read as UTF-8 text") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _damaged(where, "is not valid JSON") from None
    if not isinstance(value, dict):
        raise _damaged(where, "is not a JSON object")
    return value


def _read_summary(path: Path) -> dict[str, Any]:
    return _object(_read(path), str(path))


def _read_rounds(path: Path) -> list[Round]:
    rounds: list[Round] = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        parsed = _round(_object(line, where), where)
        if rounds and parsed.number <= rounds[-1].number:
            raise _damaged(where, f"round {parsed.number} follows round {rounds[-1].number}")
        rounds.append(parsed)
    if not rounds:
        raise _damaged(str(path), "holds no rounds")
    return rounds


def _round(value: dict[str, Any], where: str) -> Round:
    dropped = value.get("dropped") or ()
    if not isinstance(dropped, list | dict | tuple):
        raise _damaged(where, "'dropped' is neither a list nor a table")
    return Round(
        number=_count(value.get("round"), where, "round"),
        sites=_count(value.get("sites", 0), where, "sites"),
        dropped=tuple(str(name) for name in dropped),
        metrics=_numbers(value.get("metrics"), where, "metrics"),
        epsilon=_numbers(value.get("epsilon"), where, "epsilon"),
        seconds=_numbers(value.get("seconds"), where, "seconds"),
        not_finite=tuple(
            str(name) for name, number in (value.get("metrics") or {}).items() if number is None
        ),
    )


def _count(value: Any, where: str, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _damaged(where, f"'{key}' is not a whole number")
    return value


def _numbers(value: Any, where: str, key: str) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _damaged(where, f"'{key}' is not a table of numbers")
    # A figure that was not finite is recorded as null.
    known = {str(name): number for name, number in value.items() if number is not None}
    for number in known.values():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise _damaged(where, f"'{key}' holds something that is not a number")
        if not math.isfinite(number):
            raise _damaged(where, f"'{key}' holds a number that is not finite")
    return {name: float(number) for name, number in known.items()}
