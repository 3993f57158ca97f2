"""An audit of ledgers as JSON and as tables."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from fedllm.audit.attacks.results import EpsilonResult, FoundProblem, SiteEpsilon
from fedllm.audit.ledgers.figures import (
    ASSUMPTIONS,
    DatasetAudit,
    EpsilonAudit,
    LedgerAudit,
    RunAudit,
)
from fedllm.audit.ledgers.recompute import Recomputed
from fedllm.identity.titles import shown as shown_with
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.words import safe, table

_LEGEND = (
    "PLD, PRV and RDP are three accountants; each gives an upper bound of what the events cost, "
    "so the smallest of a row counts. PRV comes out up to 0.01 higher for its own numerical error, "
    "and RDP is looser: both may stand above a ceiling that was kept. Rounds are those released "
    "(a result left the site); those charged only stand behind a +."
)
_DASH = (
    "A dash: that accountant has no answer (too little noise for its grid, too small a delta, or "
    "too many kinds of steps). Where only RDP is left, the figure here is looser than that of "
    "`fedllm ledger show`, which fedllm's own accountant computes."
)


def as_json(found: EpsilonAudit) -> dict[str, Any]:
    """Return plain values; an unlimited epsilon is the text "unlimited"."""
    return {
        "ledgers": [
            {
                "path": ledger.path,
                "site": ledger.site,
                "title": ledger.title or None,
                "head": ledger.head,
                "datasets": [_dataset_json(dataset) for dataset in ledger.datasets],
            }
            for ledger in found.ledgers
        ],
        "findings": [finding.to_json() for finding in found.findings],
        "assumptions": list(ASSUMPTIONS),
    }


def _dataset_json(data: DatasetAudit) -> dict[str, Any]:
    return {
        "id": data.id,
        "unit": data.unit,
        "records": data.records,
        "persons": data.persons,
        "overlaps": list(data.overlaps),
        "delta": data.delta,
        "ceiling": number(data.ceiling),
        "claimed": number(data.claimed),
        "others_see_sums": _recomputed_json(data.sums),
        "all_others_collude": _recomputed_json(data.colluders),
        "runs": [_run_json(run) for run in data.runs],
    }


def _run_json(run: RunAudit) -> dict[str, Any]:
    return {
        "run": run.run,
        "name": run.name or None,
        "rounds_released": run.committed,
        "rounds_charged_only": run.reserved_only,
        "reported": number(run.reported),
        "claimed": number(run.claimed),
        "recomputed": _recomputed_json(run.recomputed),
        "events": [asdict(group) for group in run.groups],
    }


def _recomputed_json(value: Recomputed) -> dict[str, Any]:
    return {
        "epsilon": number(value.value),
        "pld": number(value.pld),
        "rdp": number(value.rdp),
        "prv": number(value.prv),
    }


def as_result(found: EpsilonAudit) -> EpsilonResult:
    """Return what a run folder keeps of the audit, for its report."""
    return EpsilonResult(
        sites=tuple(
            SiteEpsilon(
                site=ledger.site,
                unit=data.unit,
                claimed=_finite(data.claimed),
                recomputed=_finite(data.sums.value),
                colluders=_finite(data.colluders.value),
                delta=data.delta,
            )
            for ledger in found.ledgers
            for data in ledger.datasets
        ),
        findings=tuple(
            FoundProblem(severity=f.severity, subject=f.subject, text=f.text)
            for f in found.findings
        ),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number(value: float | None) -> float | str | None:
    """Return a number that JSON can hold."""
    return "unlimited" if value is not None and math.isinf(value) else value


def print_tables(found: EpsilonAudit) -> None:
    """Print the audit for people."""
    console = Console()
    rows = table("Site, data set", "What", "Claimed", "PLD", "PRV", "RDP", "Rounds, steps")
    for ledger in found.ledgers:
        for data in ledger.datasets:
            _add_rows(rows, shown_name(ledger), data)
    if rows.row_count:
        console.print(rows)
        console.print(_LEGEND, highlight=False)
        if any(None in _figures(data) for one in found.ledgers for data in one.datasets):
            console.print(_DASH, highlight=False)
    names = {ledger.site: shown_name(ledger) for ledger in found.ledgers if ledger.title}
    console.print("[bold]Findings[/]" if found.findings else "[bold]No findings[/]")
    colours = {"critical": "bold red", "warning": "yellow", "note": "dim"}
    for (severity, text), subjects in _grouped(found).items():
        more = f" and {len(subjects) - 1} more" if subjects[1:] else ""
        colour = colours[severity]
        console.print(
            f"  [{colour}]{severity}[/] {safe(_called(subjects[0], names))}{more}: {safe(text)}",
            highlight=False,
        )
    console.print("[bold]What this rests on[/]")
    for assumption in ASSUMPTIONS:
        console.print(f"  - {safe(assumption)}", highlight=False)


def _grouped(found: EpsilonAudit) -> dict[tuple[str, str], list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for finding in found.findings:
        # A remedy names its site; the other sites' are the same.
        text = finding.text.replace(f"{finding.subject}=", "SITE=")
        groups.setdefault((finding.severity, text), []).append(finding.subject)
    return groups


def shown_name(ledger: LedgerAudit) -> str:
    """Return the site of a ledger as people should see it."""
    return shown_with(ledger.site, {ledger.site: ledger.title} if ledger.title else {})


def _called(subject: str, names: dict[str, str]) -> str:
    """Return a finding's subject, which begins with a site's name, as people should see it."""
    site, comma, rest = subject.partition(",")
    return f"{names.get(site, site)}{comma}{rest}"


def _figures(data: DatasetAudit) -> list[float | None]:
    found = [data.sums, data.colluders, *(run.recomputed for run in data.runs)]
    return [value for one in found for value in (one.pld, one.prv, one.rdp)]


def _add_rows(rows: Table, site: str, data: DatasetAudit) -> None:
    what = f"{data.records} records; each {data.unit}"
    limit = f"δ {data.delta:g}, ceiling {shown(data.ceiling)}"
    rows.add_row(safe(site), "all runs", shown(data.claimed), *_columns(data.sums), what)
    rows.add_row(data.id[:8], "others collude", "", *_columns(data.colluders), limit)
    for run in data.runs:
        claimed = run.claimed if run.reported is None else run.reported
        rounds = f"{run.committed}" + (f"+{run.reserved_only}" if run.reserved_only else "")
        rows.add_row(
            "",
            safe(f"run {run.name} {run.run[:8]}" if run.name else f"run {run.run[:8]}"),
            shown(claimed),
            *_columns(run.recomputed),
            f"{rounds}: {_events(run)}",
        )
    rows.add_section()


def _columns(value: Recomputed) -> tuple[str, str, str]:
    return shown(value.pld), shown(value.prv), shown(value.rdp)


def _events(run: RunAudit) -> str:
    lines = [
        "no noise"
        if group.noise_multiplier is None or group.sampling_rate is None
        else f"{group.steps} steps, q {group.sampling_rate:.4g}, σ {group.noise_multiplier:.4g}"
        for group in run.groups
    ]
    more = len(lines) - 3
    return "\n".join(lines[:3] + ([f"and {more} more kinds"] if more > 0 else []))


def shown(value: float | None) -> str:
    """Write an epsilon for people."""
    return epsilon_text(value)
