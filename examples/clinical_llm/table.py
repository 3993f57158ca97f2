"""One table of all arms, of their own summary.json and score files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import exp
from pathlib import Path
from typing import Any

from fedllm.files import write_bytes, write_json
from fedllm.runs.summary import read_summary

HERE = Path(__file__).resolve().parent
HEAD = (
    "| task | arm | epsilon | sites | rounds | loss | perplexity | of the gain without privacy "
    "| scores | minutes |\n|---|---|---|---|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True)
class Arm:
    """A finished run of a task."""

    task: str
    name: str


def machine() -> dict[str, Any]:
    """Return what kind of machine it is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {key.strip(): value.strip() for key, value in found.items()}
    return {
        "processor": values.get("model name", platform.machine()),
        "bfloat16_units": "amx_bf16" in values.get("flags", ""),
        "cores": os.cpu_count(),
    }


def commit() -> str:
    """Return which commit of fedllm this is; empty outside a repository."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _scores(out: Path, task: str, arm: str) -> dict[str, Any]:
    path = out / "scores" / f"{task}-{arm}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def rows(out: Path, arms: list[Arm]) -> list[dict[str, Any]]:
    """Return each arm's figures, the base model of each task first."""
    result: list[dict[str, Any]] = []
    gains: dict[str, float] = {}
    for arm in arms:
        summary = read_summary(out / f"{arm.task}-{arm.name}")
        before, after = (found["loss"] for found in (summary.metrics_before, summary.metrics))
        if before is None or after is None:
            raise SystemExit(f"{out / f'{arm.task}-{arm.name}'}: the loss was no number")
        if arm.name == "clear":
            gains[arm.task] = before - after
        if not any(row["task"] == arm.task for row in result):
            base = {"loss": before, "scores": _scores(out, arm.task, "base")}
            result.append({**asdict(Arm(arm.task, "base")), **base})
        result.append(
            {
                **asdict(arm),
                "epsilon": summary.privacy.get("epsilon"),
                "delta": summary.privacy.get("delta"),
                "noise": summary.privacy.get("noise"),
                "encryption": summary.encryption.get("scheme"),
                "method": summary.model.get("method"),
                "sites": summary.sites,
                "rounds": summary.rounds,
                "loss": after,
                "gain": before - after,
                "seconds": summary.seconds.get("total"),
                "test_records": summary.metrics.get("records"),
                "test_tokens": summary.metrics.get("tokens"),
                "run_id": summary.run_id,
                "finished": summary.finished,
                "scores": _scores(out, arm.task, arm.name),
            }
        )
    for row in result:
        clear = gains.get(row["task"])
        if clear and row["name"] != "base":
            row["part_of_clear"] = row["gain"] / clear
    return result


def _line(row: dict[str, Any]) -> str:
    def text(key: str, form: str) -> str:
        value = row.get(key)
        return "" if value is None else format(value, form)

    scores = ", ".join(
        f"{key} {value:.3f}" for key, value in row["scores"].items() if isinstance(value, float)
    )
    cells = (
        row["task"],
        row["name"],
        text("epsilon", ".2f"),
        text("sites", "d"),
        text("rounds", "d"),
        text("loss", ".4f"),
        f"{exp(row['loss']):.2f}",
        text("part_of_clear", ".2f"),
        scores,
        f"{row['seconds'] / 60:.0f}" if row.get("seconds") else "",
    )
    return f"| {' | '.join(cells)} |\n"


def write_table(out: Path, form: str, arms: list[Arm]) -> None:
    """Write table.md and results.json of the arms that are finished."""
    found = rows(out, arms)
    kind = machine()
    about = {
        "form": form,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": kind,
        "model": read_summary(out / f"{arms[0].task}-{arms[0].name}").model,
    }
    write_json(out / "results.json", {**about, "rows": found})
    words = (
        f"Form `{form}`, {about['date']}, commit {about['commit']}, {kind['cores']} cores of "
        f"{kind['processor']}{' with AMX' if kind['bfloat16_units'] else ''}; losses are nats a "
        "token of the answers in a part of the test file.\n\n"
    )
    write_bytes(out / "table.md", (words + HEAD + "".join(map(_line, found))).encode())
