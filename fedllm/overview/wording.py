"""How a site stands, in sentences; the page and the terminal say the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedllm.overview.budget import Budget
from fedllm.overview.forecast import Forecast
from fedllm.overview.reading import Running
from fedllm.overview.standing import Standing
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.visible import visible

_PURPOSES = {
    "training": ("training on this site's records", "its update"),
    "evaluation": ("measuring the shared model on held-out records", "its sums"),
}


@dataclass(frozen=True)
class State:
    """How the service is, in a word for the eye, one for a style, and a sentence."""

    word: str
    style: str
    sentence: str


def state_of(standing: Standing) -> State:
    """Say how the service is."""
    service, paused, ending = standing.service, standing.paused, standing.ending
    if not service.runs:
        also = " When it starts again, it is paused." if paused else ""
        return State("not running", "stopped", f"The service does not run; nothing is sent.{also}")
    if ending is not None:
        after = "after the round that is under way" if standing.running else "in a moment"
        return State("stopping", "stopped", f"The service ends {after}.")
    if paused is not None:
        more = "; the one that is under way is finished" if standing.running else ""
        return State("paused", "stopped", f"No new round is begun{paused.words}{more}.")
    if service.tasks is None:
        return State("starting", "running", "The service reads its records.")
    return State("running", "running", f"The service has run since {_time(service.since)}.")


def connection_of(standing: Standing) -> str:
    """Say whether the coordinator is there; empty where nobody knows."""
    service = standing.service
    if service.connected is None:
        return ""
    is_there = "connected to" if service.connected else "NOT connected to"
    since = f" since {_time(service.linked)}" if service.linked else ""
    return f"{is_there} the coordinator at {visible(standing.kit.address)}{since}"


def running_words(running: Running | None) -> str:
    """Say what runs now."""
    if running is None:
        return "Nothing runs now."
    doing, answer = _PURPOSES.get(running.purpose, ("working", "its answer"))
    which = f"Run '{running.name}', round {running.round} of {running.rounds}"
    if running.phase == "computing":
        return f"{which}: {doing}, since {_time(running.since)}."
    until = f", until {_time(running.until)} at most" if running.until else ""
    return (
        f"{which}: this site has made {answer}, and waits for the others to finish the round{until}"
        f"; begun {_time(running.since)}."
    )


def budget_words(budget: Budget | None) -> str:
    """Say what is spent and what is left."""
    if budget is None:
        return "Nothing was spent yet: this site has no ledger."
    most, spent = budget.ceiling.epsilon, epsilon_text(budget.spent)
    words = f"Epsilon {spent} of {epsilon_text(most)} is spent at delta {budget.ceiling.delta:g}"
    if math.isinf(budget.spent):
        return f"{words}: records were used without privacy, and nothing bounds what that told."
    if budget.reserved > 0:
        words += (
            f"; of that, {epsilon_text(budget.reserved)} is reserved: charged for rounds of which "
            "no result left this site"
        )
    return f"{words}; {left_text(budget)} is left."


def left_text(budget: Budget) -> str:
    """Write what is left: rounded down, since it is what a site counts on."""
    left = budget.left
    if math.isinf(left):
        return "no limit"
    if not left:
        return "nothing"
    step = 10.0 ** (math.floor(math.log10(left)) - 3)
    return f"{math.floor(left / step) * step:.4g}"


def forecast_words(forecast: Forecast) -> str:
    """Say how much longer the budget lasts, or why nobody can tell."""
    if forecast.kind == "nothing charged":
        return "How long the budget lasts cannot be told before a first round was charged."
    if forecast.kind == "carried only":
        return (
            "How long the budget lasts cannot be told: what was carried over from an earlier "
            "ledger does not say what a round costs."
        )
    if forecast.kind == "unlimited":
        return (
            "There is no end to tell: the spending has no limit any more, and every run with "
            "privacy is refused."
        )
    if forecast.kind == "no ceiling":
        return "There is no end to tell: the policy sets no ceiling."
    like = f"round {forecast.like_round} of run '{visible(forecast.like_run)}'"
    count = forecast.rounds or 0
    if not count:
        words = f"The budget is at its end: another round like {like} would be refused."
    elif forecast.more:
        words = f"At this rate the budget lasts for more than {count} rounds like {like}."
    else:
        rounds = "1 more round" if count == 1 else f"{count} more rounds"
        words = f"At this rate the budget ends in {rounds}, each like {like}."
    if not forecast.alike:
        words += " The last rounds cost different amounts, so this is a rough guess."
    return words


def change_words(standing: Standing) -> str:
    """Say what a change of the policy needs."""
    file = visible(str(standing.policy_file))
    return (
        f"It stands in {file}. To change it, edit that file, try it with fedllm config check, and "
        "restart the service. A higher ceiling is a new promise to the people behind the records, "
        "and what is spent is never given back: let the data-protection officer decide it."
    )


def changed_words() -> str:
    """Say that the policy's file was changed since the service started."""
    return (
        "The file was changed after the service had started. What stands here is the file; the "
        "service goes by what stood there before, until it is restarted."
    )


def _time(text: str) -> str:
    return f"{text[:16].replace('T', ' ')} UTC" if len(text) >= 16 else text or "a time not known"
