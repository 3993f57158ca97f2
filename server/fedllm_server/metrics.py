"""The figures of a round, one line each in ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fedllm.errors import CheckpointError
from fedllm.files import append_line, write_bytes


@dataclass(frozen=True)
class RoundReport:
    """One line of ``metrics.jsonl``.

    Attributes
    ----------
    round : int
        0 is the evaluation before training.
    sites : int
        Sites whose updates are in the sum.
    dropped : dict of str to str
        Sites that are not, and why.
    metrics : dict, optional
        Test metrics of the shared model on the coordinator's public file.
    site_metrics : dict, optional
        The same on records that the sites hold out, from noised sums; with the standard
        deviations that the noise gives them.
    epsilon : dict of str to float
        Spent so far by this run at each site; known to the coordinator in a simulation only.
    update_norm : float
        L2 norm of the mean update.
    bytes_up, bytes_down : int
        Bytes from and to all sites.
    seconds : dict of str to float
        Wall time by phase; "train" and "encrypt" are sums over sites.
    started, finished : str
        When the round was begun and when this line was written; UTC, ISO 8601.
    """

    round: int
    sites: int
    dropped: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] | None = None
    site_metrics: dict[str, float] | None = None
    epsilon: dict[str, float] = field(default_factory=dict)
    update_norm: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    started: str = ""
    finished: str = ""


def append_report(path: Path, report: RoundReport) -> None:
    """Add a line to ``metrics.jsonl``; what is not finite is written as null."""
    append_line(path, json.dumps(_finite(asdict(report)), ensure_ascii=False, allow_nan=False))


def read_reports(path: Path) -> list[RoundReport]:
    """Read all lines of ``metrics.jsonl``; none if there is no file.

    Raises
    ------
    CheckpointError
        If a line is damaged.
    """
    if not path.exists():
        return []
    reports = []
    known = {item.name for item in fields(RoundReport)}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            value = json.loads(line)
            reports.append(RoundReport(**{k: v for k, v in value.items() if k in known}))
        except (ValueError, TypeError, AttributeError):
            raise CheckpointError(
                f"{path}, line {number} is damaged", "remove the line, then resume"
            ) from None
    return reports


def cut_reports(path: Path, last_round: int) -> None:
    """Drop the lines after ``last_round``, which a resumed run writes again."""
    kept = [report for report in read_reports(path) if report.round <= last_round]
    lines = [json.dumps(_finite(asdict(report)), ensure_ascii=False) for report in kept]
    write_bytes(path, "".join(line + "\n" for line in lines).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
