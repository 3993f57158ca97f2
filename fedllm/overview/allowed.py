"""What a site's policy says, in plain words."""

from __future__ import annotations

from fedllm.config.site_policy import AllowSection, BudgetSection, SitePolicy
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.visible import visible

_WHERE_REQUIRED = {"required": "refused", "optional": "allowed"}


def allowed(policy: SitePolicy) -> tuple[tuple[str, str], ...]:
    """Return what is meant and what holds, a pair for each rule; names no source of records."""
    return (*_budget(policy.budget), *_protects(policy), *_allow(policy.allow), *_where(policy))


def _budget(budget: BudgetSection) -> list[tuple[str, str]]:
    ceiling = (
        f"epsilon {epsilon_text(budget.epsilon)} at delta {budget.delta:g}, over all runs, for ever"
    )
    league = (
        f"epsilon {epsilon_text(budget.colluders_epsilon)}"
        if budget.colluders_epsilon is not None
        else "written down, and not limited"
    )
    rows = [
        ("the most that may ever be spent", ceiling),
        ("the same, if everyone else works together against this site", league),
    ]
    if budget.account is not None:
        rows.append(("account that this counts for", visible(budget.account)))
    return rows


def _protects(policy: SitePolicy) -> list[tuple[str, str]]:
    persons = policy.data is not None and policy.data.unit is not None
    what = "each person, with all of their records" if persons else "each single record"
    least = "persons" if policy.allow.unit == "person" else "records or persons"
    return [
        ("what is protected in training", what),
        ("what a run must protect at least", least),
    ]


def _allow(allow: AllowSection) -> list[tuple[str, str]]:
    models = f"{len(allow.models)}, by their fingerprints" if allow.models else "any"
    parts = " and ".join(allow.parts) if allow.parts else "by nothing: such runs are refused"
    return [
        ("what may be trained", ", ".join(word.replace("_", " ") for word in allow.tasks)),
        ("base models that may be trained", models),
        ("sites in a sum that may be opened", f"{allow.min_cohort} at least"),
        (
            "sites that may work against this one without seeing its part",
            f"{allow.colluders}; in large rounds {allow.colluding_share:.0%} of them",
        ),
        ("sites that may be missing from a large sum", f"{allow.lost_share:.0%} of them at most"),
        ("runs that do not encrypt", _WHERE_REQUIRED[allow.encryption]),
        ("encrypted runs without masks", _WHERE_REQUIRED[allow.masks]),
        ("runs without differential privacy", "allowed" if allow.non_private else "refused"),
        ("by what quality may be told", parts),
    ]


def _where(policy: SitePolicy) -> list[tuple[str, str]]:
    device = policy.model.device if policy.model is not None else None
    return [("where it computes", device or "cpu")]
