"""What ``fedllm ledger`` prints: tables and notes for people, plain values for scripts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedllm.visible import visible
from fedllm.words import safe, table

if TYPE_CHECKING:
    from fedllm.privacy.ledger.audit import AccountReport, Verification


def beyond_the_ceiling(found: Verification) -> list[str]:
    """Say where what was charged is above the last ceiling, though each charge kept to its own."""
    notes = []
    for account in found.accounts:
        ceiling, whose = account.ceiling, account.account or "all records"
        for spent, most, eyes in (
            (account.spent.value, ceiling.epsilon if ceiling else math.inf, ""),
            (
                account.spent_against_colluders.value,
                ceiling.colluders_epsilon if ceiling else math.inf,
                " for everyone else colluding",
            ),
        ):
            if spent > most:
                notes.append(
                    f"{visible(whose)}: all charges together come to epsilon {_shown(spent)}{eyes},"
                    f" above the ceiling of the last one, {_shown(most)}"
                )
        if ceiling and math.isinf(ceiling.epsilon):
            notes.append(f"{visible(whose)}: the last charge had no ceiling")
    if found.by_dataset:
        notes.append(
            f"{found.by_dataset} charges were made by data set, each under its own ceiling"
        )
    return notes


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_json(found: Verification, path: Path) -> dict[str, Any]:
    """Return plain values; an infinite epsilon is null."""
    from fedllm.identity.titles import titles_beside

    return {
        "site": found.site,
        "title": titles_beside(path).get(found.site),
        "public_key": found.public_key,
        "entries": found.head.sequence,
        "head": str(found.head),
        "accounts": [_account_json(account) for account in found.accounts],
        "charges_by_data_set": found.by_dataset,
        "carried_over": [
            {
                "keys": list(one.covers),
                "head": one.head or None,
                "account": one.account or None,
                "charges": len(one.events),
            }
            for one in found.carried
        ],
    }


def _account_json(account: AccountReport) -> dict[str, Any]:
    ceiling = account.ceiling
    return {
        "account": account.account or None,
        "unit": account.unit,
        "epsilon": _finite(account.spent.value),
        "epsilon_against_colluders": _finite(account.spent_against_colluders.value),
        "adaptive_epsilon": None
        if account.spent_adaptively is None
        else _finite(account.spent_adaptively),
        "ceiling": {
            "epsilon": _finite(ceiling.epsilon),
            "delta": ceiling.delta,
            "colluders_epsilon": _finite(ceiling.colluders_epsilon),
            "adaptive_epsilon": _finite(ceiling.adaptive_limit("sums")),
        }
        if ceiling
        else None,
        "runs": [
            {
                "run": run.run,
                "name": run.name or None,
                "committed": run.committed,
                "reserved_only": run.reserved_only,
                "epsilon": _finite(run.epsilon),
            }
            for run in account.runs
        ],
    }


_GREEK = (
    "ε (epsilon) measures what can be learned: whoever sees all that was released can become surer "
    "that a given record or person took part by a factor of at most e to the power of ε, except "
    "with probability δ (delta). Smaller is safer; spent ε is never given back."
)
_LEGEND = (
    "Released: rounds for which a result left this site; whether they were finished, the "
    "coordinator knows. Rounds that were charged count in full, released or not, for every file, "
    "query and task."
)
_COLLUDERS = (
    "ε, others collude: what everyone else could learn who puts together all they have against "
    "this site. Where noise is shared they know all of it but this site's part, and learn more. "
    "It has a ceiling only where the policy sets budget.colluders_epsilon."
)


def print_tables(found: Verification, path: Path) -> None:
    """Print what a ledger says, for people."""
    from rich.console import Console

    from fedllm.identity.titles import shown, titles_beside

    console, site = Console(), safe(shown(found.site, titles_beside(path)))
    console.print(f"Privacy ledger of site [bold]{site}[/bold]: {found.head.sequence} entries")
    accounts = table("Account", "Protects each", "Spent ε", "Ceiling ε", "δ", "ε, others collude")
    for account in found.accounts:
        ceiling = account.ceiling
        accounts.add_row(
            _account_name(account),
            account.unit,
            _shown(account.spent.value),
            _shown(ceiling.epsilon) if ceiling else "no charge yet",
            f"{ceiling.delta:g}" if ceiling else "no charge yet",
            _shown(account.spent_against_colluders.value)
            + (f" of {_shown(ceiling.colluders_epsilon)}" if ceiling else ""),
        )
    console.print(accounts)
    for account in found.accounts:
        if account.ceiling and account.spent_adaptively:
            console.print(
                f"If the coordinator chose each charge by what it had seen, the spent ε of "
                f"{_account_name(account)} is at most {_shown(account.spent_adaptively)} of "
                f"{_shown(account.ceiling.adaptive_limit('sums'))}."
            )
    runs = table("Run", "Identifier", "Account", "Released", "Charged only", "ε of the run alone")
    for account in found.accounts:
        for run in account.runs:
            runs.add_row(
                safe(run.name) or "not recorded",
                safe(run.run),
                _account_name(account),
                str(run.committed),
                str(run.reserved_only),
                _shown(run.epsilon),
            )
    console.print(runs)
    for one in found.carried:
        source = f"an earlier ledger (head {one.head[:20]}...)" if one.head else "a statement"
        whose = f"for account '{safe(one.account)}'" if one.account else "for all records"
        console.print(f"Carried over from {source}: {len(one.events)} charges, which count {whose}")
    if found.by_dataset:
        console.print(
            f"{found.by_dataset} charges were made by data set, by the rule of earlier versions. "
            "They count for all records: together they may be above a ceiling that each kept."
        )
    console.print(_GREEK)
    console.print(_LEGEND)
    if any(one.spent_against_colluders.value != one.spent.value for one in found.accounts):
        console.print(_COLLUDERS)


def _account_name(account: AccountReport) -> str:
    return safe(account.account) or "all records"


def _shown(value: float) -> str:
    from fedllm.privacy.accounting.words import epsilon_text

    return epsilon_text(value)
