"""A site's page as HTML, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedllm.dashboard.curves import Chart, Series, bar, chart
from fedllm.dashboard.pages import Page
from fedllm.dashboard.wording import size
from fedllm.overview.allowed import allowed
from fedllm.overview.budget import Budget, Charge
from fedllm.overview.gauge import gauge
from fedllm.overview.sent import Refused, Sent
from fedllm.overview.standing import Standing
from fedllm.overview.wording import (
    budget_words,
    change_words,
    changed_words,
    connection_of,
    forecast_words,
    left_text,
    running_words,
    state_of,
)
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.visible import visible

_ENVIRONMENT = Environment(
    loader=ChoiceLoader([PackageLoader("fedllm.overview"), PackageLoader("fedllm.dashboard")]),
    autoescape=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.globals["bar"] = bar
_MOST_SENT, _MOST_REFUSED, _MOST_CHARGES = 50, 20, 200


def framed(page: Page, base: str, live: bool = False) -> bytes:
    """Return a whole page; ``base`` is its path, ``live`` says that its sections change."""
    sections = {name: Markup(html) for name, html in page.sections.items()}  # noqa: S704 - templates
    events = f"{base}events?seen={page.revision}" if live else ""
    text = _ENVIRONMENT.get_template("frame.html.j2").render(
        title=page.title, sections=sections, live=events, base=base
    )
    return text.encode()


def site_page(standing: Standing, base: str, form: str) -> Page:
    """Return the page of a site; its forms go below ``base`` and hold ``form``."""
    made: Any = _ENVIRONMENT.get_template("site.html.j2").module
    state, name = state_of(standing), visible(standing.kit.shown)
    budget, policy = standing.budget, standing.policy
    troubles = [(visible(one.what), visible(one.remedy)) for one in standing.troubles]
    held = standing.paused is not None or standing.ending is not None
    running = running_words(standing.running)
    sections = {
        "top": made.top(name, visible(standing.kit.federation), state, connection_of(standing)),
        "troubles": made.troubles(troubles, changed_words() if standing.changed else ""),
        "now": made.now(running),
        "control": made.control(base, form, held, standing.service.runs),
        "budget": made.budget(
            budget_words(budget) if budget is not None or not troubles else "",
            forecast_words(budget.forecast) if budget is not None else "",
            None if budget is None else gauge(budget),
            [] if budget is None else figures_of(budget),
        ),
        "history": made.history(
            None if budget is None else history_chart(budget),
            [] if budget is None else history_rows(budget),
            0 if budget is None else max(0, len(budget.charges) - _MOST_CHARGES),
        ),
        "sent": made.sent(
            sent_rows(standing.traffic.sent),
            max(0, len(standing.traffic.sent) - _MOST_SENT),
            refused_rows(standing.traffic.refused),
        ),
        "policy": made.policy(
            [] if policy is None else list(allowed(policy)), change_words(standing)
        ),
        "ledger": made.ledger(base, "" if budget is None else str(budget.head)),
    }
    return Page(f"{state.word}: {name}", sections, said=f"{state.sentence} {running}")


def entry_page(wrong: bool, again: str) -> Page:
    """Return the page that asks for the token; ``again`` is a path to try once more."""
    made: Any = _ENVIRONMENT.get_template("entry.html.j2").module
    return Page("A site's page", {"entry": made.entry(wrong, again)})


def wrong_page(what: str, remedy: str, base: str) -> Page:
    """Return the page that says what was not done, and what to do."""
    made: Any = _ENVIRONMENT.get_template("entry.html.j2").module
    return Page("That was not done", {"wrong": made.wrong(visible(what), visible(remedy), base)})


def figures_of(budget: Budget) -> list[tuple[str, str]]:
    """Return the figures of a budget, a pair each."""
    rows = [
        ("spent", f"epsilon {epsilon_text(budget.spent)}"),
        ("of that reserved, without a result yet", f"epsilon {epsilon_text(budget.reserved)}"),
        ("left", f"epsilon {left_text(budget)}"),
        ("the most that may be spent", f"epsilon {epsilon_text(budget.ceiling.epsilon)}"),
        ("at delta", f"{budget.ceiling.delta:g}"),
        ("for each", budget.unit),
        ("charges, and of them without a result", f"{len(budget.charges)}, {budget.open}"),
    ]
    if budget.carried:
        rows.append(("charges carried over from earlier ledgers", str(budget.carried)))
    if budget.account:
        rows.append(("account", visible(budget.account)))
    if budget.colluders > budget.spent:
        most = epsilon_text(budget.ceiling.colluders_epsilon)
        words = f"epsilon {epsilon_text(budget.colluders)}, and {most} allowed"
        rows.append(("if everyone else works together against this site", words))
    return rows


def history_chart(budget: Budget) -> Chart | None:
    """Draw what was spent, charge by charge."""
    known = [
        (float(number), charge.spent)
        for number, charge in enumerate(budget.charges, 1)
        if charge.spent is not None
    ]
    limit = ("the most that may be spent", budget.ceiling.epsilon)
    return chart(
        "spent",
        "Epsilon spent, charge by charge",
        [Series("spent", known)],
        across="charge",
        limit=limit if limit[1] < 1e300 else None,
        text=epsilon_text,
    )


def history_rows(budget: Budget) -> list[tuple[str, ...]]:
    """Return a row for each charge, the latest first."""
    numbered = list(enumerate(budget.charges, 1))[-_MOST_CHARGES:]
    return [_history_row(number, charge) for number, charge in reversed(numbered)]


def _history_row(number: int, charge: Charge) -> tuple[str, ...]:
    return (
        str(number),
        visible(charge.when[:16].replace("T", " ")),
        visible(charge.name or charge.run),
        f"{charge.round}, {charge.purpose}",
        "sent" if charge.released else "charged, nothing sent",
        "" if charge.spent is None else epsilon_text(charge.spent),
    )


def sent_rows(sent: Sequence[Sent]) -> list[tuple[str, ...]]:
    """Return a row for each update that left, the latest first."""
    return [
        (
            one.when[:16].replace("T", " "),
            one.name,
            f"{one.round} of {one.rounds}",
            one.what + (f"; {size(one.other_bytes)} beside it" if one.other_bytes else ""),
            one.how,
        )
        for one in sent[:_MOST_SENT]
    ]


def refused_rows(refused: Sequence[Refused]) -> list[tuple[str, ...]]:
    """Return a row for each refusal, the latest first."""
    return [
        (one.when[:16].replace("T", " "), one.name, f"{one.message}, round {one.round}", one.reason)
        for one in refused[:_MOST_REFUSED]
    ]
