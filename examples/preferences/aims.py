"""What was aimed at, beside what came out: in words that a table ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paired import Right, Share, accuracy, difference

# Of the share of right pairs: how much less than without privacy.
WITHIN = 0.01
GAIN_SD, KL_NATS, LENGTH, REPEATED = 1.0, 10.0, 0.2, 0.02
HEAD = "| step | private less clear | private less alone | aim |\n"


def accuracies(out: Path, step: str) -> dict[str, Share]:
    """Return how many pairs of compared.jsonl each variant of a step gets right."""
    return {name: accuracy(one) for name, one in _told(out, step).items()}


def _told(out: Path, step: str) -> dict[str, Right]:
    path = out / "scores" / f"pairs-{step}.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: Right.read(values) for name, values in told.items()}


def of_pairs(out: Path, steps: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Compare variants on the same pairs of compared.jsonl.

    Returns
    -------
    str
        A table; empty where there is nothing to compare with.
    dict
        Its figures by step.
    """
    lines, figures = [], {}
    for step in steps:
        found = _told(out, step)
        less = {
            name: difference(found["private"], found[name])
            for name in ("clear", "alone")
            if name in found and "private" in found
        }
        if not less:
            continue
        # One that was trained on public prompts spent nothing itself; so the aim is of the others.
        aim = _within(less["clear"]) if "clear" in less and step in ("reward", "dpo") else ""
        cells = (
            step,
            *(less[name].points if name in less else "" for name in ("clear", "alone")),
            aim,
        )
        lines.append(f"| {' | '.join(cells)} |\n")
        figures[step] = {"private_less": {name: vars(one) for name, one in less.items()}}
    if not lines:
        return "", {}
    words = "\nDifferences on the same pairs of compared.jsonl, in points:\n\n"
    return words + HEAD + f"|{'---|' * 4}\n" + "".join(lines), figures


def of_rules(out: Path) -> str:
    """Say how many of the same pairs are right without a model; empty where nobody looked."""
    found = accuracies(out, "rules")
    if not found:
        return ""
    said = ", ".join(f"{name} {share.words}" for name, share in found.items())
    return f"\nThe same pairs without a model: {said}.\n"


def _within(less: Share) -> str:
    if less.low >= -WITHIN:
        return "within a point"
    return "not within a point" if less.high < -WITHIN else "not told apart by so few pairs"


def of_alignment(variant: str, step: str, row: Mapping[str, Any]) -> str:
    """Say of an alignment whether rewards rose, near the start, by answers of the same length."""
    scores, gain = row["scores"], row["alignment"].get("reward_gain")
    if gain is None or "kl" not in scores:
        return ""
    longer = scores["tokens"] / scores["tokens_of_start"] - 1.0
    aims = (
        (f"reward {gain:+.2f} sd (at least {GAIN_SD:.0f})", gain >= GAIN_SD),
        (f"KL {scores['kl']:.1f} nats (under {KL_NATS:.0f})", scores["kl"] < KL_NATS),
        (f"length {longer:+.0%} (within {LENGTH:.0%})", abs(longer) <= LENGTH),
        (
            f"repeated {scores['repeated']:.1%} (under {REPEATED:.0%})",
            scores["repeated"] < REPEATED,
        ),
    )
    said = ", ".join(words if met else f"**{words}: missed**" for words, met in aims)
    return f"- {variant} {step}: {said}\n"
