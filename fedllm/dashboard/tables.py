"""The tables of a run's page: privacy, cost, rounds, fingerprints, settings and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from fedllm.config.parsing import without_passwords
from fedllm.dashboard.curves import number_text
from fedllm.dashboard.following import Seen
from fedllm.dashboard.measures import (
    FIRST,
    bytes_in_all,
    is_number,
    measures_of,
    promised_of,
    spent_of,
)
from fedllm.dashboard.wording import duration, size
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs import names
from fedllm.runs.metrics import Figures, RoundReport
from fedllm.runs.shelf import settings_of
from fedllm.visible import visible

_PHASES = {
    "train": "training, all sites together",
    "encrypt": "encrypting, all sites together",
    "aggregate": "adding up",
    "decrypt": "opening the sum",
    "evaluate": "evaluating on the public file",
}
_MOST_ROWS = 500
_FILES = {
    names.REPORT: "report for a data-protection officer",
    names.REPORT_TWIN: "the report's figures",
    names.SUMMARY: "what the run came to",
    names.METRICS: "figures of each round or step",
    names.HEADS: "signed heads of the sites' ledgers",
    names.ROSTER: "public keys of the parties",
    names.RELEASE: "what the coordinator signed of the released model",
    names.WITHDRAWN: "that the release was withdrawn",
}
Rows = tuple[tuple[str, str], ...]


def privacy_of(seen: Seen) -> Rows:
    """Say what a run promises and has spent."""
    config = seen.config
    if seen.kind != "run":
        return ()
    promised, spent = promised_of(seen), spent_of(seen)
    if config is not None and not config.private:
        return (("promise", "NONE: this run is not private"),)
    rows = [("epsilon promised", epsilon_text(promised))]
    if spent is not None and config is not None:
        share = f" ({100 * spent / promised:.0f}% of it)" if promised and isfinite(spent) else ""
        rows.append(("epsilon spent so far, the most at a site", epsilon_text(spent) + share))
    else:
        rows.append(
            ("epsilon spent", "only the sites know: each keeps its own ledger, and none sends it")
        )
    if config is not None:
        rows.append(("delta", f"{config.privacy.delta:g}"))
        rows.append(("for each", config.unit))
        noise = str(settings_of(config).get("privacy.noise", ""))
        rows.append(("noise", visible(noise).replace("_", " ")))
    told = seen.summary.privacy if seen.summary is not None else {}
    if is_number(told.get("colluders_epsilon")):
        rows.append(("epsilon, if all others collude", epsilon_text(told["colluders_epsilon"])))
    return tuple(rows)


@dataclass(frozen=True)
class Part:
    """A part of what a run took.

    Attributes
    ----------
    name, value : str
        In words.
    share : float
        Of the largest part, from 0 to 1.
    """

    name: str
    value: str
    share: float


def seconds_of(seen: Seen) -> tuple[Part, ...]:
    """Return the seconds by phase, over all rounds so far."""
    sums = {
        name: sum(report.seconds.get(name) or 0.0 for report in seen.reports) for name in _PHASES
    }
    most = max(sums.values(), default=0.0)
    return tuple(
        Part(_PHASES[name], duration(value), value / most)
        for name, value in sums.items()
        if value > 0
    )


def took(seen: Seen) -> str:
    """Say how long all rounds took by the clock; empty where they do not say."""
    if seen.kind == "alignment":
        # A step's line has the seconds from the beginning.
        last = seen.reports[-1].seconds.get("total") if seen.reports else None
        return duration(last) if last else ""
    total = sum(report.seconds.get("total") or 0.0 for report in seen.reports)
    return duration(total) if total else ""


def bytes_of(seen: Seen) -> tuple[Part, ...]:
    """Return the bytes that travelled, in all and for each round."""
    sums = {
        "from the sites": bytes_in_all(report.bytes_up for report in seen.reports),
        "to the sites": bytes_in_all(report.bytes_down for report in seen.reports),
    }
    most, rounds = max(sums.values(), default=0), max(1, seen.done)
    return tuple(
        Part(name, f"{size(value)} in all, {size(value / rounds)} a round", value / most)
        for name, value in sums.items()
        if value
    )


@dataclass(frozen=True)
class RoundsTable:
    """All rounds as a table, the latest first.

    Attributes
    ----------
    headings, rows : tuple
        Cells in words.
    left_out : int
        Earlier rounds that are not shown.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int


def rounds_table(seen: Seen) -> RoundsTable:
    """Write the figures of each round."""
    measures = [name for name in measures_of(seen.reports) if name in FIRST]
    shown = seen.reports[-_MOST_ROWS:]
    rows = []
    for report in reversed(shown):
        figures = report.metrics or report.site_metrics or {}
        epsilon = report.largest_epsilon
        rows.append(
            (
                str(report.round),
                str(report.sites) if report.round else "",
                str(len(report.dropped)) if report.dropped else "",
                *(_figure(figures, name) for name in measures),
                epsilon_text(epsilon) if epsilon is not None else "",
                size(report.bytes_up) if report.bytes_up else "",
                duration(s) if (s := report.seconds.get("total")) else "",
                _remark(report),
            )
        )
    headings = ("round", "sites", "left out", *measures, "epsilon", "up", "took", "remark")
    left_out = len(seen.reports) - len(shown)
    if seen.kind == "alignment":
        # No site takes part in it.
        return RoundsTable(("step", *measures), tuple(_of_step(row) for row in rows), left_out)
    return RoundsTable(headings, tuple(rows), left_out)


def _of_step(row: tuple[str, ...]) -> tuple[str, ...]:
    return (row[0], *row[3:-4])


def _figure(figures: Figures, name: str) -> str:
    if name not in figures:
        return ""
    value = figures[name]
    return "not a number" if value is None else number_text(value)


def _remark(report: RoundReport) -> str:
    if report.kept_round is not None:
        return f"rejected, back to round {report.kept_round}"
    if report.rejected:
        return f"rejected ({visible(', '.join(report.rejected))})"
    return "before training" if not report.round else ""


def fingerprints_of(seen: Seen) -> Rows:
    """Return the digests by which others know a run and what it gave."""
    rows: list[tuple[str, str]] = []
    summary = seen.summary
    if summary is not None:
        rows += [
            ("run", summary.run_id),
            ("base model", str(summary.model.get("fingerprint", ""))),
            ("adapter, SHA-256", summary.adapter_sha256),
        ]
        rows += [(f"version of {name}", text) for name, text in summary.versions.items()]
    keys = seen.heads.keys
    if "authority" in keys:
        rows.append(("key of the key authority", keys["authority"]))
    return tuple((name, visible(value)) for name, value in rows if value)


def settings_rows(seen: Seen) -> Rows:
    """Return the settings of a run, without user and password of any URL."""
    if seen.config is None or seen.kind != "run":
        return ()
    found: Mapping[str, Any] = without_passwords(settings_of(seen.config))
    return tuple(
        (key, visible(_plain(value))) for key, value in found.items() if value not in (None, [], {})
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else str(value)


def files_of(seen: Seen) -> tuple[tuple[str, str, str], ...]:
    """Return what may be had: name, what it is, and its size."""
    return tuple((name, _FILES[name], size(count)) for name, count in seen.files.items())
