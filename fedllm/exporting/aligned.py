"""What the card of an aligned model says otherwise than that of a run that sites trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedllm.audit.report.numbers import number
from fedllm.exporting.markdown import cell
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.lineage import Ancestor, ancestors, spent_together
from fedllm.runs.record import RunFolder

_ALGORITHMS = {
    "ppo": "proximal policy optimisation",
    "grpo": "group-relative policy optimisation",
}


def is_aligned(run: RunFolder) -> bool:
    """Tell whether a folder is of an alignment, in which no site took part."""
    return bool(run.section("alignment"))


def is_bounded(run: RunFolder) -> bool:
    """Tell whether all that an aligned model is made of has an epsilon."""
    return spent_together(_earlier(run), run.config.unit) is not None


def what(run: RunFolder) -> str:
    """Say in a sentence how it was made."""
    told, begun = run.section("alignment"), run.section("started_from").get("run")
    taught = _named(told.get("reward"))
    how = _ALGORITHMS.get(str(told.get("algorithm")), "a reward model's word")
    return (
        f"Made by fedllm: the model of the run {cell(begun)} was taught by the reward model of the "
        f"run {cell(taught)} with {how}, on public prompts at the coordinator. No record of a site "
        "was read for it."
    )


def data(run: RunFolder) -> list[str]:
    """Say what was read for it."""
    prompts = run.section("alignment").get("prompts")
    counts: Mapping[str, Any] = prompts if isinstance(prompts, Mapping) else {}
    names = {"learning": "learned with", "selection": "chosen by", "test": "told by"}
    return [f"- public prompts {words}: {counts.get(key)}" for key, words in names.items()]


def quality(run: RunFolder) -> list[str]:
    """Give the figures of the prompts that nothing was chosen by."""
    told = run.section("alignment")
    before, after = run.section("metrics_before"), run.section("metrics")
    lines = ["On public prompts that nothing was chosen by:", "", "| measure | before | after |"]
    lines += ["|---|---|---|"]
    lines += [
        f"| {cell(name)} | {_shown(before.get(name))} | {_shown(value)} |"
        for name, value in after.items()
    ]
    judge = told.get("judge")
    by = (
        f"by the reward model of the run {cell(_named(judge))}, which it was not taught by"
        if judge
        else "by the reward model that taught it, which is no independent measure"
    )
    lines += [
        "",
        f"- reward rose by {_interval(told, 'reward_gain')} standard deviations of its start",
        f"- share of answers that are better than before: {_interval(told, 'win_rate')}, {by}",
        "- both are what models of people's preferences say: none of them knows what is true",
    ]
    return lines


def privacy(run: RunFolder) -> list[str]:
    """Say what of others it is made of, and what that was allowed to tell."""
    earlier = _earlier(run)
    lines = [
        "Nothing private was read to align this model, and nothing was charged for it. It is made "
        "of models that had been released before, and tells of the records behind them no more "
        "than they do together (post-processing):",
        "",
        "| run | epsilon | delta | unit |",
        "|---|---|---|---|",
        *(_row(one) for one in earlier),
        "",
    ]
    spent = spent_together(earlier, run.config.unit)
    if spent is None:
        lines.append("NONE: not all of these have an epsilon, so that the whole has none.")
    else:
        lines.append(
            f"- a {run.config.unit} that took part in all of them spent at most epsilon "
            f"{epsilon_text(spent)}"
        )
    return lines


def audits(run: RunFolder) -> list[str]:
    """Say that nobody attacked it: attacks train runs again, and this is none."""
    return [
        "- Not attacked: nobody tried to find records in what this model writes. Audits of the "
        "runs above are of their own models."
    ]


def ledgers(run: RunFolder) -> list[str]:
    """Say where the charges are."""
    return ["None: an alignment charges nobody. The ledgers of the runs above have what was spent."]


def _earlier(run: RunFolder) -> tuple[Ancestor, ...]:
    return ancestors(run.section("started_from"))


def _row(one: Ancestor) -> str:
    epsilon = "no bound" if one.epsilon is None else epsilon_text(one.epsilon)
    delta = "" if one.delta is None else f"{one.delta:g}"
    return f"| {cell(one.run or 'not known')} | {epsilon} | {delta} | {cell(one.unit or '?')} |"


def _named(value: Any) -> Any:
    return value.get("run") if isinstance(value, Mapping) else None


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else "not measured"


def _interval(told: Mapping[str, Any], name: str) -> str:
    low, high = (_shown(told.get(f"{name}_{end}")) for end in ("low", "high"))
    return f"{_shown(told.get(name))} ({low} to {high})"
