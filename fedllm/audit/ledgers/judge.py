"""Findings from the figures of ledgers: claims that do not hold, promises that are weaker."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedllm.audit.findings import Finding
from fedllm.audit.ledgers.figures import DatasetAudit, EpsilonAudit, LedgerAudit, RunAudit
from fedllm.audit.ledgers.recompute import Recomputed
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.privacy.ledger.entries import TamperedError

# Both sides round upwards, by grids and by error bounds of about one hundredth.
TOLERANCE = 0.02


def trust_findings(ledger: LedgerAudit, key_known: bool, head_known: bool) -> Iterable[Finding]:
    """Say what was not known from a trustworthy place."""
    if not key_known:
        yield Finding(
            "note",
            ledger.site,
            "signatures were checked against the key that the ledger itself names; "
            f"give --public-key {ledger.site}=HEX to know that it is the site's",
        )
    if not head_known:
        yield Finding(
            "note",
            ledger.site,
            "no anchor was given: entries cut off at the end would not be noticed; ask the "
            "coordinator for the heads that it kept (--heads)",
        )


def judge(site: str, data: DatasetAudit) -> Iterable[Finding]:
    """Say what does not hold, or holds less than it seems, for one data set and its runs."""
    subject = f"{site}, data set {data.id[:12]}"
    spent = data.sums.value
    yield from _compare(subject, "fedllm's accountant", data.claimed, data.sums)
    for limit, eyes in ((data.limit, ""), (data.colluders_limit, " for everyone else colluding")):
        if limit is not None and _above(limit.spent, limit.ceiling):
            yield Finding(
                "critical",
                subject,
                f"epsilon {epsilon_text(limit.spent)} was spent{eyes}, above the site's ceiling "
                f"{limit.ceiling:g}",
            )
    if math.isinf(spent):
        yield Finding(
            "warning",
            subject,
            "a run without differential privacy used these records: nothing bounds what was "
            "revealed, and every later run on them is without a bound as well",
        )
    elif math.isfinite(spent) and not math.isfinite(data.colluders.value):
        yield Finding("warning", subject, "nothing protects it if all others collude")
    units = data.persons if data.unit == "person" else data.records
    if data.delta * units > 1:
        yield Finding(
            "warning",
            subject,
            f"delta {data.delta:g} is above 1 / {units} {data.unit}s: releasing one at random "
            "would satisfy it",
        )
    if data.unit == "record" and data.persons:
        yield Finding(
            "note", subject, "single records are protected; persons with several of them are less"
        )
    if data.overlaps:
        yield Finding(
            "note", subject, f"shares records or persons with {len(data.overlaps)} other data sets"
        )
    for run in data.runs:
        yield from _judge_run(f"{site}, run {run.run}", run)


def _judge_run(subject: str, run: RunAudit) -> Iterable[Finding]:
    if run.reported is not None:
        yield from _compare(subject, "the run's summary", run.reported, run.recomputed)
    yield from _compare(subject, "fedllm's accountant", run.claimed, run.recomputed)
    if run.recomputed.spread > 0.05:
        yield Finding(
            "warning",
            subject,
            f"the accountants disagree: {epsilon_text(run.recomputed.pld)} and "
            f"{epsilon_text(run.recomputed.prv)}",
        )
    if run.reserved_only:
        yield Finding(
            "note", subject, f"{run.reserved_only} rounds were charged and released nothing"
        )


def _compare(subject: str, who: str, claimed: float, found: Recomputed) -> Iterable[Finding]:
    value = found.value
    if _above(value, claimed):
        yield Finding(
            "critical",
            subject,
            f"{who} claims epsilon {epsilon_text(claimed)}; recomputed from the events it is "
            f"{epsilon_text(value)}",
        )
    elif math.isfinite(claimed) and claimed > 1.1 * value + TOLERANCE:
        yield Finding(
            "note",
            subject,
            f"{who} claims epsilon {epsilon_text(claimed)}, more than the {epsilon_text(value)} "
            "that was spent",
        )


def _above(value: float, limit: float) -> bool:
    return value > limit * (1 + TOLERANCE) + 1e-6


def require_sound(found: EpsilonAudit) -> None:
    """Raise when something critical was found, after it was shown.

    Raises
    ------
    TamperedError
        Exit code 4.
    """
    wrong = [finding for finding in found.findings if finding.severity == "critical"]
    if wrong:
        raise TamperedError(
            f"{len(wrong)} findings are critical; first: {wrong[0].subject}: {wrong[0].text}",
            "believe no epsilon of this ledger until its site has explained it",
        )
