"""How a site stands, in a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from fedllm.dashboard.wording import size
from fedllm.overview.allowed import allowed
from fedllm.overview.standing import Standing
from fedllm.overview.wording import (
    budget_words,
    change_words,
    changed_words,
    connection_of,
    forecast_words,
    running_words,
    state_of,
)
from fedllm.visible import visible
from fedllm.words import safe, table

_MOST_ROWS = 12


def print_standing(standing: Standing, console: Console) -> None:
    """Print all of it, the most urgent first."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    kit, state = standing.kit, state_of(standing)
    say(f"Site {visible(kit.shown)} of {visible(kit.federation)}: {state.word.upper()}")
    say(state.sentence)
    if there := connection_of(standing):
        say(there[0].upper() + there[1:] + ".")
    for trouble in standing.troubles:
        say(f"PROBLEM: {visible(trouble.what)}")
        say(f"  what to do: {visible(trouble.remedy)}")
    say(f"\n{running_words(standing.running)}")
    # A ledger that does not hold says nothing of the budget.
    if standing.budget is not None or not standing.troubles:
        say(f"\n{budget_words(standing.budget)}")
    if standing.budget is not None:
        say(forecast_words(standing.budget.forecast))
    _traffic(standing, console, say)
    if standing.policy is not None:
        rules = table("What the policy says", "")
        for name, value in allowed(standing.policy):
            rules.add_row(name, safe(value))
        console.print(rules)
    say(change_words(standing))
    if standing.changed:
        say(changed_words())


def _traffic(standing: Standing, console: Console, say: Callable[[str], None]) -> None:
    sent, refused = standing.traffic.sent, standing.traffic.refused
    if sent:
        rows = table("Sent", "Run", "Round", "What", "How")
        for one in sent[:_MOST_ROWS]:
            beside = f"; {size(one.other_bytes)} of signatures and keys" if one.other_bytes else ""
            round_ = f"{one.round} of {one.rounds}"
            rows.add_row(one.when[:16], safe(one.name), round_, one.what + beside, one.how)
        console.print(rows)
        if len(sent) > _MOST_ROWS:
            say(f"And {len(sent) - _MOST_ROWS} before.")
    else:
        say("\nNothing was sent yet, as far as this site has written down.")
    if refused:
        rows = table("Refused", "Run", "Asked", "Why")
        for no in refused[:_MOST_ROWS]:
            rows.add_row(no.when[:16], safe(no.name), no.message, safe(no.reason))
        console.print(rows)
