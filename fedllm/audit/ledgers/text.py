"""An audit of ledgers as JSON and as tables."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from fedllm.audit.attacks.results import EpsilonResult, FoundProblem, SiteEpsilon
from fedllm.audit.ledgers.figures import ASSUMPTIONS, AccountAudit, EpsilonAudit, RunAudit
from fedllm.audit.ledgers.recompute import Recomputed
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.words import safe


def as_json(found: EpsilonAudit) -> dict[str, Any]:
    """Return plain values; an unlimited epsilon is the text "unlimited"."""
    return {
        "ledgers": [
            {
                "path": ledger.path,
                "site": ledger.site,
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
        "rounds_finished": run.committed,
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number(value: float | None) -> float | str | None:
    """Return a number that JSON can hold."""
    return "unlimited" if value is not None and math.isinf(value) else value


def print_tables(found: EpsilonAudit) -> None:
    """Print the audit for people."""
    console = Console()
    table = Table("Site, account", "What", "Claimed", "PLD", "PRV", "RDP", "Rounds, steps")
    for ledger in found.ledgers:
        for account in ledger.accounts:
            _add_rows(table, ledger.site, account)
    if table.row_count:
        console.print(table)
    console.print("[bold]Findings[/]" if found.findings else "[bold]No findings[/]")
    colours = {"critical": "bold red", "warning": "yellow", "note": "dim"}
    for (severity, text), subjects in _grouped(found).items():
        more = f" and {len(subjects) - 1} more" if subjects[1:] else ""
        colour = colours[severity]
        console.print(
            f"  [{colour}]{severity}[/] {safe(subjects[0])}{more}: {safe(text)}",
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


def _add_rows(table: Table, site: str, found: AccountAudit) -> None:
    what, name = f"each {found.unit}", safe(found.account or "all records")
    limit = f"δ {found.delta:g}, ceiling {shown(found.ceiling)}"
    table.add_row(safe(site), "all runs", shown(found.claimed), *_columns(found.sums), what)
    table.add_row(name, "others collude", "", *_columns(found.colluders), limit)
    for run in found.runs:
        claimed = run.claimed if run.reported is None else run.reported
        rounds = f"{run.committed}" + (f"+{run.reserved_only}" if run.reserved_only else "")
        table.add_row(
            "",
            safe(f"run {run.name} {run.run[:8]}" if run.name else f"run {run.run[:8]}"),
            shown(claimed),
            *_columns(run.recomputed),
            f"{rounds}: {_events(run)}",
        )
    table.add_section()


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
