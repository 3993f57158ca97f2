"""An audit of ledgers as JSON and as tables."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedllm.audit.attacks.results import AuditedLedger, EpsilonResult, FoundProblem, SiteEpsilon
from fedllm.audit.ledgers.figures import (
    ASSUMPTIONS,
    COLLUDERS,
    SUMS,
    AccountAudit,
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
                "accounts": [_account_json(account) for account in ledger.accounts],
            }
            for ledger in found.ledgers
        ],
        "findings": [finding.to_json() for finding in found.findings],
        "assumptions": list(ASSUMPTIONS),
    }


def _account_json(found: AccountAudit) -> dict[str, Any]:
    return {
        "account": found.account or None,
        "unit": found.unit,
        "delta": found.delta,
        "ceiling": number(found.ceiling),
        "claimed": number(found.claimed),
        "others_see_sums": _recomputed_json(found.sums),
        "all_others_collude": _recomputed_json(found.colluders),
        "charges_by_data_set": found.by_dataset,
        "runs": [_run_json(run) for run in found.runs],
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


def as_result(found: EpsilonAudit, folder: Path | None = None) -> EpsilonResult:
    """Return what a run folder keeps of the audit, for its report."""
    return EpsilonResult(
        ledgers=tuple(
            AuditedLedger(file=_place(Path(one.path), folder), site=one.site, head=one.head)
            for one in found.ledgers
        ),
        sites=tuple(
            SiteEpsilon(
                site=ledger.site,
                unit=account.unit,
                claimed=_finite(account.claimed),
                recomputed=_finite(account.sums.value),
                colluders=_finite(account.colluders.value),
                delta=account.delta,
            )
            for ledger in found.ledgers
            for account in ledger.accounts
        ),
        findings=tuple(
            FoundProblem(severity=f.severity, subject=f.subject, text=f.text)
            for f in found.findings
        ),
    )


def _place(path: Path, folder: Path | None) -> str:
    """Return where a ledger is, in words that stay true when a run's folder is moved."""
    if folder is not None and path.is_relative_to(folder):
        return str(path.relative_to(folder))
    return str(path.absolute())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number(value: float | None) -> float | str | None:
    """Return a number that JSON can hold."""
    return "unlimited" if value is not None and math.isinf(value) else value


def print_tables(found: EpsilonAudit) -> None:
    """Print the audit for people."""
    console = Console()
    rows = table("Site, account", "What", "Claimed", "PLD", "PRV", "RDP", "Rounds, steps")
    for ledger in found.ledgers:
        for account in ledger.accounts:
            _add_rows(rows, shown_name(ledger), account)
    if rows.row_count:
        console.print(rows)
        console.print(_LEGEND, highlight=False)
        if any(None in _figures(account) for one in found.ledgers for account in one.accounts):
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


def _figures(account: AccountAudit) -> list[float | None]:
    found = [account.sums, account.colluders, *(run.recomputed for run in account.runs)]
    return [value for one in found for value in (one.pld, one.prv, one.rdp)]


def _add_rows(rows: Table, site: str, found: AccountAudit) -> None:
    what, name = f"each {found.unit}", safe(found.account or "all records")
    limit = f"δ {found.delta:g}, ceiling {shown(found.ceiling)}"
    rows.add_row(safe(site), f"all runs, {SUMS}", shown(found.claimed), *_columns(found.sums), what)
    rows.add_row(name, f"all runs, {COLLUDERS}", "", *_columns(found.colluders), limit)
    for run in found.runs:
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
