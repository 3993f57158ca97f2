"""Which measures a run has, and what it promises and has spent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

from fedllm.dashboard.following import Seen
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.metrics import RoundReport

_MOST_BYTES = 1 << 60
# Counts, and no measures of a model; and the ends of intervals, which stand in the table.
COUNTS = ("records", "units", "pairs", "tokens")
_ENDS = ("_noise", "_low", "_high")
FIRST = ("loss", "accuracy", "f1", "perplexity", "reward")


def measures_of(reports: Sequence[RoundReport]) -> list[str]:
    """Return the names of all measures of a run, those first that people look for first."""
    found = dict.fromkeys(
        name
        for report in reports
        for figures in (report.metrics, report.site_metrics)
        for name in figures or {}
        if name not in COUNTS and not name.endswith(_ENDS)
    )
    return sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def best_of(seen: Seen) -> tuple[str, float] | None:
    """Return the measure that says most in a word, as of the last evaluation."""
    measured = [report.metrics for report in seen.reports if report.metrics]
    figures = (seen.summary.metrics if seen.summary is not None else None) or (
        measured[-1] if measured else {}
    )
    for name in ("accuracy", "f1", "reward", "loss", *figures):
        value = figures.get(name)
        if value is not None and name not in COUNTS and value != inf:
            return name, value
    return None


def promised_of(seen: Seen) -> float | None:
    """Return the epsilon that a run promises; None without one."""
    if seen.kind == "run" and seen.config is not None:
        return seen.config.privacy.epsilon
    told = seen.summary.privacy.get("promised") if seen.summary is not None else None
    return float(told) if isinstance(told, int | float) else None


def spent_of(seen: Seen) -> float | None:
    """Return the largest epsilon that the folder tells of a site; None where only sites know."""
    spent: dict[str, float] = {}
    for report in seen.reports:
        spent.update(report.spent)
    return max(spent.values(), default=None)


def spent_by_site(seen: Seen) -> dict[str, str]:
    """Write the epsilon of each site of which the folder tells it."""
    spent: dict[str, float] = {}
    for report in seen.reports:
        spent.update(report.spent)
    return {site: epsilon_text(value) for site, value in spent.items()}


def is_number(value: Any) -> bool:
    """Tell whether a value of a file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def bytes_in_all(told: Iterable[int]) -> int:
    """Add up the bytes of rounds; a damaged line may say anything."""
    return max(0, min(sum(told), _MOST_BYTES))
