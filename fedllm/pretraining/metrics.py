"""metrics.jsonl of a run: one line a report, from which the curve is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedllm.canonical import read_json
from fedllm.files import append_line, write_bytes
from fedllm.runs.plain_json import damaged, read_objects, to_line

_MEASURES = ("bits_per_byte", "held_out")


def add_metrics(path: Path, figures: dict[str, Any]) -> None:
    """Append one report, durably; what is not finite is written as null."""
    append_line(path, to_line(figures))


def forget_after(path: Path, step: int) -> None:
    """Remove the reports of later steps, and what a crash cut off: they are done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            keep = line.endswith(b"\n") and read_json(line, nan=True)["step"] <= step
        except (ValueError, KeyError, TypeError):
            keep = False
        if keep:
            kept.append(line)
    write_bytes(path, b"".join(kept))


def curve(path: Path) -> list[dict[str, float]]:
    """Return the evaluations so far: step, tokens and each held-out measure that is finite.

    Raises
    ------
    FedllmError
        If a line is damaged; names it.
    """
    points = []
    for where, values in read_objects(path, nan=True):
        if not all(isinstance(values.get(name), int) for name in ("step", "tokens")):
            raise damaged(where, "'step' or 'tokens' is not a whole number")
        measures = {
            k: v
            for k, v in values.items()
            if k.startswith(_MEASURES) and isinstance(v, int | float)
        }
        if measures:
            points.append({"step": values["step"], "tokens": values["tokens"], **measures})
    return points
