"""One table of all steps, of their own summary.json and score files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aims import accuracies, of_alignment, of_pairs, of_rules
from paired import Share

from fedllm.files import write_bytes, write_json
from fedllm.runs.summary import read_summary

HERE = Path(__file__).resolve().parent
# Which runs a step's model is made of.
MADE_OF = {
    "grpo": ("taught", "reward", "judge"),
    "ppo": ("taught", "reward", "judge"),
    "dpo": ("taught", "dpo"),
    "selected": ("taught", "selector"),
}
HEAD = (
    "variant",
    "step",
    "epsilon",
    "pairs right",
    "wins by the judge",
    "reward gain (sd)",
    "KL (nats)",
    "worth, was",
    "length, was",
    "empty",
    "cut",
    "repeated",
    "minutes",
)


def commit() -> str:
    """Return which commit of fedllm this is; empty outside a repository."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def today() -> str:
    """Return the date."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def machine() -> str:
    """Return what kind of machine it is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def rows(out: Path, steps: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the figures of each step that is finished."""
    found = []
    for variant, step in steps:
        folder = out / f"{variant}-{step}"
        if not (folder / "summary.json").exists():
            continue
        summary = read_summary(folder)
        place = out / "scores" / f"{variant}-{step}.json"
        scores = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
        right = accuracies(out, step).get(variant)
        runs = [out / f"{variant}-{name}" for name in MADE_OF.get(step, (step,))]
        # A finished step has all that it is made of.
        epsilons = [read_summary(run).privacy.get("epsilon") for run in runs]
        found.append(
            {
                "variant": variant,
                "step": step,
                "epsilons": None if None in epsilons else epsilons,
                "noise": summary.privacy.get("noise"),
                "sites": summary.sites,
                "rounds": summary.rounds,
                "seconds": summary.seconds.get("total"),
                "alignment": summary.alignment,
                "pairs_right": None if right is None else vars(right),
                "scores": scores,
                "run_id": summary.run_id,
                "finished": summary.finished,
            }
        )
    return found


def _with_interval(values: dict[str, Any], key: str) -> str:
    if values.get(key) is None:
        return ""
    low, high = (values.get(f"{key}_{end}") for end in ("low", "high"))
    ends = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{values[key]:.2f}{ends}"


def _right(share: dict[str, float] | None) -> str:
    return "" if share is None else Share(**share).words


def _beside(scores: dict[str, Any], key: str, was: str) -> str:
    return f"{scores[key]:.2f}, {scores[was]:.2f}" if key in scores else ""


def _line(row: dict[str, Any]) -> str:
    scores, alignment, writes = row["scores"], row["alignment"], row["scores"].get("kl")
    epsilons = row["epsilons"]
    cells = (
        row["variant"],
        row["step"],
        "none" if epsilons is None else " + ".join(f"{one:.2f}" for one in epsilons),
        _right(row["pairs_right"]),
        _with_interval(scores, "win_rate"),
        # By the model that was learned from; the judge's gain stands in results.json.
        _with_interval(alignment, "reward_gain"),
        "" if writes is None else f"{writes:.2f}",
        _beside(scores, "worth", "worth_of_start"),
        _beside(scores, "tokens", "tokens_of_start"),
        *(f"{scores[key]:.1%}" if key in scores else "" for key in ("empty", "cut", "repeated")),
        "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}",
    )
    return f"| {' | '.join(cells)} |\n"


def write_table(out: Path, form: str, steps: list[tuple[str, str]]) -> None:
    """Write table.md and results.json of the steps that are finished."""
    found = rows(out, steps)
    about = {
        "form": form,
        "date": today(),
        "commit": commit(),
        "machine": machine(),
    }
    pairs, compared = of_pairs(out, [step for variant, step in steps if variant == "private"])
    rules = {name: vars(one) for name, one in accuracies(out, "rules").items()}
    write_json(out / "results.json", {**about, "rows": found, "pairs": compared, "rules": rules})
    words = (
        f"Form `{form}`, {about['date']}, commit {about['commit']}, {about['machine']}. "
        "Intervals are 95%.\n\n"
    )
    lines = [f"| {' | '.join(HEAD)} |\n", f"|{'---|' * len(HEAD)}\n", *map(_line, found)]
    aims = "".join(of_alignment(row["variant"], row["step"], row) for row in found)
    said = f"\nWhat the alignments were aimed at:\n\n{aims}" if aims else ""
    text = words + "".join(lines) + of_rules(out) + pairs + said
    write_bytes(out / "table.md", text.encode())
