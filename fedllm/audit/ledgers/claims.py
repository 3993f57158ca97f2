"""What a run's folder claims of its sites' spending, and what it asked for.

Read as evidence: what is missing or damaged is a finding, and nothing is changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedllm.audit.findings import Finding
from fedllm.config import RunConfig
from fedllm.errors import FedllmError
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.heads import read_heads
from fedllm.runs import names
from fedllm.runs.asked import begun_otherwise, differences
from fedllm.runs.metrics import read_reports
from fedllm.runs.plain_json import read_object
from fedllm.runs.record import read_config


@dataclass(frozen=True, slots=True)
class Claims:
    """What a folder says of the ledgers that belong to it.

    Attributes
    ----------
    folder : Path
        A run's folder, or another one that holds ledgers.
    run : str
        The run's identifier; empty where no summary says it.
    sites : mapping of str to float
        Epsilon of the run by site, as ``summary.json`` says; infinite without a bound.
    rounds_sites : mapping of str to float
        The same as the last lines of ``metrics.jsonl`` say.
    summary : mapping
        ``summary.json`` as it stands; empty where it cannot be believed.
    heads : mapping of str to sequence of Head
        Heads of ledgers that the run's coordinator kept, by site.
    asked : RunConfig, optional
        ``run.toml``.
    problems : tuple of Finding
        What is wrong with the folder, whatever its ledgers say.
    """

    folder: Path
    run: str = ""
    sites: Mapping[str, float] = field(default_factory=dict)
    rounds_sites: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    heads: Mapping[str, Sequence[Head]] = field(default_factory=dict)
    asked: RunConfig | None = None
    problems: tuple[Finding, ...] = ()

    @property
    def privacy(self) -> Mapping[str, Any]:
        """The summary's table of that name; empty where it has none."""
        value = self.summary.get("privacy")
        return value if isinstance(value, Mapping) else {}


def read_claims(folder: Path) -> Claims:
    """Read a folder's summary, metrics, heads and configuration.

    Raises
    ------
    ConfigError
        If the heads cannot be read.
    """
    kept = folder / names.HEADS
    heads = read_heads(kept) if kept.exists() else {}
    path = folder / names.SUMMARY
    if not path.exists():
        if not (folder / names.RUN_TOML).exists():
            return Claims(folder, heads=heads)
        text = "it is not there: what the run claims to have spent was not compared"
        return Claims(folder, heads=heads, problems=(Finding("warning", str(path), text),))
    try:
        summary = read_object(path)
    except FedllmError as error:
        problem = _wrong(path, error.message.removeprefix(f"{path}: "))
        return Claims(folder, heads=heads, problems=(problem,))
    run, sites, problems = _reported(path, summary)
    rounds_sites, damaged = _of_rounds(folder)
    asked, changed = _asked(folder, summary)
    return Claims(
        folder, run, sites, rounds_sites, summary, heads, asked, (*problems, *damaged, *changed)
    )


def _reported(
    path: Path, summary: Mapping[str, Any]
) -> tuple[str, dict[str, float], tuple[Finding, ...]]:
    """Return run and epsilon by site; what cannot be compared is a finding."""
    run, privacy = summary.get("run_id"), summary.get("privacy")
    if not isinstance(run, str):
        return "", {}, (_wrong(path, "'run_id' is no text"),)
    sites = privacy.get("sites") if isinstance(privacy, dict) else None
    if not isinstance(sites, dict):
        return run, {}, (_wrong(path, "'privacy.sites' is no table"),)
    # Null is an epsilon without a bound.
    known = {
        site: as_epsilon(value)
        for site, value in sites.items()
        if value is None or is_epsilon(value)
    }
    missing = [f"'privacy.sites.{site}' is no epsilon" for site in sites if site not in known]
    return run, known, tuple(_wrong(path, what) for what in missing)


def is_epsilon(value: object) -> bool:
    """Tell whether a value of JSON is a number that may be an epsilon."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def as_epsilon(value: Any) -> float:
    """Return an epsilon of JSON, where null is one without a bound."""
    return math.inf if value is None else float(value)


def _wrong(path: Path, what: str) -> Finding:
    text = f"{what}: what the run claims to have spent cannot be compared with the ledgers"
    return Finding("critical", str(path), text)


def _of_rounds(folder: Path) -> tuple[dict[str, float], tuple[Finding, ...]]:
    path = folder / names.METRICS
    last: dict[str, float] = {}
    try:
        for report in read_reports(path):
            last.update(report.spent)
    except FedllmError as error:
        return {}, (_wrong(path, error.message.removeprefix(f"{path}: ")),)
    return last, ()


def _asked(
    folder: Path, summary: Mapping[str, Any]
) -> tuple[RunConfig | None, tuple[Finding, ...]]:
    """Read ``run.toml``, and say where it is not what the run was begun and finished with."""
    path = folder / names.RUN_TOML
    if not path.exists():
        return None, ()
    try:
        config = read_config(folder)
    except FedllmError as error:
        text = f"it cannot be read ({error.message}): what was asked for was not compared"
        return None, (Finding("critical", str(path), text),)
    return config, _changed(folder, config, summary)


def _changed(folder: Path, config: RunConfig, summary: Mapping[str, Any]) -> tuple[Finding, ...]:
    path = str(folder / names.RUN_TOML)
    found = differences(config, summary)
    if found:
        text = f"it was changed after the run, or the summary was: {'; '.join(map(str, found))}"
        return (Finding("critical", path, text),)
    try:
        if not begun_otherwise(folder, config):
            return ()
    except FedllmError as error:
        text = f"{error.message}: whether the run was begun with it was not compared"
        return (Finding("warning", path, text),)
    text = (
        "it was changed after the run: its SHA-256 is not the one that the run's checkpoints name "
        "(a key that summary.json does not repeat, or an added one)"
    )
    return (Finding("critical", path, text),)
