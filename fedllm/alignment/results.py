"""What an alignment leaves: lines of ``metrics.jsonl``, and ``summary.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedllm import __version__
from fedllm.canonical import read_json
from fedllm.clock import utc_now
from fedllm.config.alignment import Algorithm, AlignConfig
from fedllm.files import append_line, write_bytes
from fedllm.runs.lineage import CHAIN, ancestors
from fedllm.runs.metrics import RoundReport
from fedllm.runs.plain_json import to_line
from fedllm.runs.start import StartedFrom
from fedllm.runs.summary import Summary

if TYPE_CHECKING:
    from fedllm.alignment.loop import Outcome
    from fedllm.serving.released import Released


def add_line(
    path: Path,
    step: int,
    training: Mapping[str, float],
    measured: Mapping[str, float],
    seconds: float,
    note: str,
) -> None:
    """Append a step to ``metrics.jsonl``, durably: a round's line, without sites.

    ``metrics`` are of the prompts that are held out to choose by, ``training`` of the step's own
    answers.
    """
    report = RoundReport(
        round=step,
        metrics=dict(measured) or None,
        seconds={"total": round(seconds, 3)},
        finished=utc_now(),
    )
    line = {**report.model_dump(), "training": dict(training), "note": note}
    append_line(path, to_line(line))


def forget_after(path: Path, step: int) -> None:
    """Remove lines of later steps, and one that a crash cut off: they are done again."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            keep = line.endswith(b"\n") and read_json(line, nan=True)["round"] <= step
        except (ValueError, KeyError, TypeError):
            keep = False
        kept += [line] if keep else []
    write_bytes(path, b"".join(kept))


def made_of(start: StartedFrom, others: Sequence[StartedFrom]) -> dict[str, Any]:
    """Return ``started_from`` of the summary: the start's, with all runs that went into it.

    What the reward model and the judge learned of their records went into the model too, so that
    whoever took part in several of these runs spent the epsilon of each.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, one in enumerate((start, *others)):
        for place, ancestor in enumerate(ancestors(one.about)):
            # One of which nothing is known is none of the others.
            known = ancestor.run_id or f"unknown {number} {place}"
            found.setdefault(known, ancestor.model_dump(mode="json"))
    return {**start.about, CHAIN: list(found.values())}


def summary_of(
    config: AlignConfig,
    algorithm: Algorithm,
    released: Released,
    earlier: Summary,
    started_from: Mapping[str, Any],
    outcome: Outcome,
    told: Mapping[str, Any],
) -> Summary:
    """Return what an alignment comes to.

    Parameters
    ----------
    released : Released
        The model that it began with, which holds what is kept.
    earlier : Summary
        Of the run that it began with.
    told : mapping
        What else stands under ``alignment``.
    """
    course = outcome.course
    # It read no record of anybody, and so adds nothing for any unit; but where one of those that it
    # is made of has no bound, a 0 here would pass for one.
    bounded = all(one.epsilon is not None for one in ancestors(started_from))
    spent = 0.0 if bounded else None
    values = {
        "run": config.name,
        "run_id": course.run_id,
        "task": earlier.task,
        "rounds": course.step,
        "sites": 0,
        "metrics": outcome.test.figures(),
        "metrics_before": course.test_before.figures(),
        "privacy": {
            "epsilon": spent,
            "delta": spent,
            "unit": "site",
            "noise": "none",
            "sites": {},
        },
        "seconds": {"total": course.seconds},
        "adapter_sha256": hashlib.sha256(outcome.adapter.astype("<f4").tobytes()).hexdigest(),
        "model": dict(earlier.model),
        "versions": _versions(),
        "started_from": dict(started_from),
        "started": course.started,
        "finished": utc_now(),
        "simulated": earlier.simulated,
        "alignment": {
            "algorithm": algorithm,
            "steps": course.step,
            "kept_step": course.best_step,
            "ended": course.ended or "all steps were taken",
            **outcome.gains,
            **told,
        },
    }
    return Summary.model_validate(values)


def _versions() -> dict[str, str]:
    names = ("torch", "peft", "transformers")
    return {"fedllm": __version__, **{name: version(name) for name in names}}
