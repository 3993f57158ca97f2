"""Whether a run's folder is as the run left it and as its audits found it, and when they did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

from fedllm.audit.attacks.audited import Audited
from fedllm.audit.attacks.results import EpsilonResult, Kept, made_of
from fedllm.audit.findings import Severity
from fedllm.audit.ledgers.judge import above
from fedllm.audit.report.numbers import MOST_VALUES, bound, number
from fedllm.errors import FedllmError
from fedllm.privacy.ledger.audit import read_state
from fedllm.runs.asked import begun_otherwise, differences
from fedllm.runs.names import CHECKPOINTS, LEDGERS, RUN_TOML
from fedllm.runs.record import RunFolder


@dataclass(frozen=True, slots=True)
class Stale:
    """An audit of a run that was made of other files than lie there now.

    Attributes
    ----------
    of : Audited
        The run.
    audit : str
        The audit's name.
    files : list of str
        What changed since, or is gone.
    """

    of: Audited
    audit: str
    files: list[str]


def stale_audits(runs: Sequence[Audited]) -> list[Stale]:
    """Return the audits of several runs that are of other files than lie there now."""
    return [
        Stale(audited, name, files)
        for audited in runs
        for name, result in kept_results(audited).items()
        if (files := changed(audited.run.path, name, result))
    ]


def found_by_looking_again(
    mine: Audited, stale: Sequence[Stale], texts: Mapping[str, Any]
) -> Iterator[tuple[Severity, str]]:
    """Yield what is not as it was: the request since the run, the files since their audits.

    Parameters
    ----------
    mine : Audited
        The run that the report is about.
    stale : sequence of Stale
        Of this run, and of those that stand beside it.
    texts : mapping
        The report's catalogue.
    """
    words, run = texts["findings"], mine.run
    if what := changed_request(run):
        yield "critical", words["request"].format(what=what)
    asked, spent = run.config.privacy.epsilon, mine.spent
    if asked is not None and spent is not None and asked < spent < inf and above(spent, asked):
        yield "critical", words["overspent"].format(spent=bound(spent), asked=number(asked))
    for one in stale:
        beside = "" if one.of is mine else f" ({one.of.run.config.name})"
        more = f" (+{len(one.files) - MOST_VALUES})" if len(one.files) > MOST_VALUES else ""
        files = ", ".join(one.files[:MOST_VALUES]) + more
        audit = texts["audited"][one.audit] + beside
        yield "warning", words["stale"].format(audit=audit, files=files)


def kept_results(audited: Audited) -> dict[str, Kept]:
    """Return the results of a run's audits by the audit's name, those alone that were made."""
    found = {
        "epsilon": audited.epsilon,
        "canaries": audited.canaries,
        "membership": audited.membership,
        "extraction": audited.extraction,
    }
    return {name: result for name, result in found.items() if result is not None}


def date_of(result: Kept) -> str:
    """Return when an audit was made, for people; nothing where that is not known."""
    try:
        made = datetime.fromisoformat(result.made)
    except ValueError:
        return ""
    return f"{made.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if made.tzinfo else ""


def changed(run_folder: Path, name: str, result: Kept) -> list[str]:
    """Return what is no longer as an audit found it; nothing for results that do not say.

    Parameters
    ----------
    run_folder : Path
        In which the result was kept.
    name : str
        Of the audit.
    """
    before = result.of or {}
    now = made_of(run_folder, name) if before else {}
    found = [file for file in before if before[file] != now.get(file, "")]
    if isinstance(result, EpsilonResult):
        found += _changed_ledgers(run_folder, result)
    return found


def changed_request(run: RunFolder) -> str:
    """Return how ``run.toml`` is not what the run was begun and finished with; nothing if it is."""
    found = differences(run.config, run.summary)
    if found:
        return "; ".join(f"{one.key} {one.asked} ≠ {one.told} {one.said}" for one in found)
    try:
        return (
            f"{RUN_TOML}: SHA-256 ≠ {CHECKPOINTS}" if begun_otherwise(run.path, run.config) else ""
        )
    except FedllmError:
        # A finished run has no need of them.
        return ""


def _changed_ledgers(run_folder: Path, result: EpsilonResult) -> Iterator[str]:
    if result.ledgers is None:
        return
    for ledger in result.ledgers:
        # A whole path stays one.
        if _head(run_folder / ledger.file) != ledger.head:
            yield ledger.file
    known = {ledger.file for ledger in result.ledgers}
    for path in sorted((run_folder / LEDGERS).glob("*.sqlite")):
        if (file := str(path.relative_to(run_folder))) not in known:
            yield file


def _head(path: Path) -> str:
    """Return a ledger's last entry; nothing where it cannot be believed."""
    try:
        return str(read_state(path).head)
    except (FedllmError, OSError):
        return ""
