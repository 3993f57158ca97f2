"""Findings from the figures of ledgers: claims that do not hold, promises that are weaker."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedllm.audit.findings import Finding
from fedllm.audit.ledgers.figures import AccountAudit, EpsilonAudit, LedgerAudit, RunAudit
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


def judge(site: str, found: AccountAudit) -> Iterable[Finding]:
    """Say what does not hold, or holds less than it seems, for one account and its runs."""
    subject = f"{site}, account '{found.account}'" if found.account else site
    spent = found.sums.value
    yield from compare(subject, "fedllm's accountant", found.claimed, found.sums)
    for limit in found.limits:
        if above(limit.spent, limit.ceiling):
            eyes = "" if limit.view == "sums" else " for everyone else colluding"
            yield Finding(
                "critical",
                subject,
                f"{limit.who} was charged to epsilon {epsilon_text(limit.spent)}{eyes}, above the "
                f"site's ceiling {limit.ceiling:g}",
            )
    if math.isinf(spent):
        yield Finding(
            "warning",
            subject,
            "a run without differential privacy, or one that protected another unit, used these "
            f"records: nothing bounds what was revealed of a {found.unit}, and every later run on "
            "them is without a bound as well",
        )
    elif math.isfinite(spent) and not math.isfinite(found.colluders.value):
        yield Finding("warning", subject, "nothing protects it if all others collude")
    if found.account:
        yield Finding(
            "note",
            subject,
            "an account of its own: that it shares no person with the site's other accounts is the "
            "site's word, and nothing in the ledger shows it",
        )
    if found.by_dataset:
        yield Finding(
            "note",
            subject,
            f"{found.by_dataset} charges were made under the rule of earlier versions, by data set "
            "and not by account; all of them count here, so that the sum may be above a ceiling "
            "that was kept",
        )
    for run in found.runs:
        yield from _judge_run(f"{site}, run {run.run}", run)


def _judge_run(subject: str, run: RunAudit) -> Iterable[Finding]:
    if run.reported is not None:
        yield from compare(subject, "the run's summary", run.reported, run.recomputed, run.claimed)
    yield from compare(subject, "fedllm's accountant", run.claimed, run.recomputed)
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


def compare(
    subject: str, who: str, claimed: float, found: Recomputed, own: float | None = None
) -> Iterable[Finding]:
    """Say where a claimed epsilon and the recomputed one do not fit together.

    Parameters
    ----------
    subject, who : str
        What it is about, and whose claim it is.
    claimed : float
        What is said.
    found : Recomputed
        From the events.
    own : float, optional
        What fedllm's accountant says of the same events, which decides where the foreign ones
        have nothing but a loose bound; ``claimed`` itself when left out.
    """
    value = found.value
    own = claimed if own is None else own
    if above(firm(found, own), claimed):
        yield Finding(
            "critical",
            subject,
            f"{who} claims epsilon {epsilon_text(claimed)}; recomputed from the events it is "
            f"{epsilon_text(firm(found, own))}",
        )
    elif above(value, claimed):
        yield Finding(
            "note",
            subject,
            f"{who} claims epsilon {epsilon_text(claimed)}; for so little noise only the loosest "
            f"of the foreign accountants has an answer, at most {epsilon_text(value)}, which "
            "neither confirms nor refutes it",
        )
    elif math.isfinite(value) and not math.isfinite(claimed):
        yield Finding(
            "critical",
            subject,
            f"{who} claims no bound where {epsilon_text(value)} was spent: it was damaged, or "
            "written by another program, and cannot be compared",
        )
    elif math.isfinite(claimed) and claimed > 1.1 * value + TOLERANCE:
        yield Finding(
            "note",
            subject,
            f"{who} claims epsilon {epsilon_text(claimed)}, more than the {epsilon_text(value)} "
            "that was spent",
        )


def firm(found: Recomputed, own: float) -> float:
    """Return what to hold against a claim: fedllm's own figure where the foreign ones are loose."""
    return found.value if found.tight else min(found.value, own)


def above(value: float, limit: float) -> bool:
    """Tell whether a recomputed epsilon is above a limit by more than both sides' errors."""
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
