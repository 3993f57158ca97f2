"""Recompute what sites have spent from their ledgers alone, and compare it with what was claimed.

Chain and signatures are checked first. Then every epsilon is computed from the recorded
events by three accountants of other authors (`fedllm.audit.ledgers.recompute`), for each account
over all runs and for each run, as those see it who see opened sums, and as everyone else
colluding against the site.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedllm.audit.findings import Finding, worst_first
from fedllm.audit.ledgers.figures import (
    AccountAudit,
    EpsilonAudit,
    EventGroup,
    LedgerAudit,
    Limit,
    RunAudit,
)
from fedllm.audit.ledgers.judge import judge, trust_findings
from fedllm.audit.ledgers.recompute import recompute
from fedllm.errors import ConfigError, FedllmError
from fedllm.identity.titles import titles_beside
from fedllm.privacy.accounting import accountants as accounting
from fedllm.privacy.accounting.events import (
    Event,
    Gaussian,
    NonPrivate,
    PoissonDiscreteGaussian,
    Stated,
)
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.entries import Head, NoLedgerError, TamperedError
from fedllm.privacy.ledger.exports import refuse_other_files
from fedllm.privacy.ledger.heads import read_heads
from fedllm.privacy.ledger.rules import promises
from fedllm.privacy.ledger.state import LedgerState, Reservation
from fedllm.runs import names
from fedllm.runs.plain_json import read_object
from fedllm.runs.record import runs_in


@dataclass(frozen=True, slots=True)
class Source:
    """A ledger to audit.

    Attributes
    ----------
    path : Path
        The ledger, or an export of one.
    reported : mapping of str to mapping of str to float
        Epsilon by run and site, as a run's summary says.
    heads : mapping of str to sequence of Head
        Heads that the run's coordinator kept, by site.
    problems : tuple of Finding
        What is wrong with the run folder that the ledger stands in.
    """

    path: Path
    reported: Mapping[str, Mapping[str, float]]
    heads: Mapping[str, Sequence[Head]] = field(default_factory=dict)
    problems: tuple[Finding, ...] = ()


def find_ledgers(paths: Sequence[Path]) -> list[Source]:
    """Return the ledgers of files, folders of ledgers, and run folders.

    Raises
    ------
    ConfigError
        If a path does not exist or holds no ledger.
    """
    sources: list[Source] = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"there is no {path}", "give a ledger, an export, or a run's folder")
        if path.is_file():
            refuse_other_files(path)
            sources.append(Source(path, {}))
            continue
        inner = path / names.LEDGERS
        folder = inner if inner.is_dir() else path
        found = sorted(folder.glob("*.sqlite")) + sorted(folder.glob("*.jsonl"))
        found = [file for file in found if file.name not in names.NO_LEDGERS]
        if not found:
            runs = runs_in(path)
            raise ConfigError(
                f"{folder} holds no ledgers",
                f"it is a folder of runs; give one or several of them: {runs}"
                if runs
                else "give a run's folder, or one with *.sqlite ledgers",
            )
        kept = path / names.HEADS
        heads = read_heads(kept) if kept.exists() else {}
        reported, problems = _reported(path)
        sources += [Source(file, reported, heads, problems) for file in found]
    return sources


def _reported(folder: Path) -> tuple[dict[str, dict[str, float]], tuple[Finding, ...]]:
    """Read what a run says of its sites; what cannot be compared is a finding."""
    path = folder / names.SUMMARY
    if not path.exists():
        if not (folder / names.RUN_TOML).exists():
            return {}, ()
        text = "it is not there: what the run claims to have spent was not compared"
        return {}, (Finding("warning", str(path), text),)

    def wrong(what: str) -> Finding:
        return Finding(
            "critical",
            str(path),
            f"{what}: what the run claims to have spent cannot be compared with the ledgers",
        )

    try:
        summary = read_object(path)
    except FedllmError as error:
        return {}, (wrong(error.message.removeprefix(f"{path}: ")),)
    run, privacy = summary.get("run_id"), summary.get("privacy")
    if not isinstance(run, str):
        return {}, (wrong("'run_id' is no text"),)
    sites = privacy.get("sites") if isinstance(privacy, dict) else None
    if not isinstance(sites, dict):
        return {}, (wrong("'privacy.sites' is no table"),)
    # Null is an epsilon without a bound.
    known = {
        site: math.inf if value is None else float(value)
        for site, value in sites.items()
        if value is None or _is_epsilon(value)
    }
    missing = [f"'privacy.sites.{site}' is no epsilon" for site in sites if site not in known]
    return {run: known}, tuple(map(wrong, missing))


def _is_epsilon(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def audit_ledgers(
    sources: Sequence[Source],
    public_keys: Mapping[str, bytes] | None = None,
    anchors: Mapping[str, Sequence[Head]] | None = None,
) -> EpsilonAudit:
    """Check and recompute every ledger; what does not hold is a finding, not an exception.

    Parameters
    ----------
    sources : sequence of Source
        From `find_ledgers`.
    public_keys : mapping of str to bytes, optional
        Sites' raw Ed25519 keys from a trustworthy place, by site.
    anchors : mapping of str to sequence of Head, optional
        Heads of ledgers that other parties kept, by site; those that the coordinator kept in
        a run's folder are known besides.

    Raises
    ------
    FedllmError
        If a file cannot be read.
    """
    keys = public_keys or {}
    ledgers: list[LedgerAudit] = []
    # Once for all ledgers of a folder.
    findings = list(dict.fromkeys(found for source in sources for found in source.problems))
    for source in sources:
        name = str(source.path)
        try:
            state = read_state(source.path)
            # Once more against what others know of this site.
            heads = [*(anchors or {}).get(state.site, ()), *source.heads.get(state.site, ())]
            if state.site in keys or heads:
                state = read_state(source.path, keys.get(state.site), heads)
        except (TamperedError, NoLedgerError) as error:
            # In a folder of ledgers, a file that is none is one that was exchanged.
            findings.append(Finding("critical", name, error.message))
            ledgers.append(LedgerAudit(name, "", "", ()))
            continue
        audited = _ledger(name, state, source.reported)
        ledgers.append(audited)
        findings += trust_findings(audited, state.site in keys, bool(heads))
        findings += [found for one in audited.accounts for found in judge(audited.site, one)]
        findings += _left_out(audited, source.reported)
    return EpsilonAudit(tuple(ledgers), tuple(worst_first(findings)))


def _left_out(
    ledger: LedgerAudit, reported: Mapping[str, Mapping[str, float]]
) -> Iterable[Finding]:
    """Say where a summary tells what other sites spent, and not this one."""
    for run in {run.run for one in ledger.accounts for run in one.runs}:
        if reported.get(run) and ledger.site not in reported[run]:
            yield Finding(
                "warning",
                f"{ledger.site}, run {run}",
                f"the run's {names.SUMMARY} says what other sites spent, and nothing of this one",
            )


def _ledger(
    path: str, state: LedgerState, reported: Mapping[str, Mapping[str, float]]
) -> LedgerAudit:
    accounts = tuple(_account(state, name, reported) for name in state.accounts())
    title = titles_beside(Path(path)).get(state.site, "")
    return LedgerAudit(path, state.site, str(state.head), accounts, title)


def _account(
    state: LedgerState, name: str, reported: Mapping[str, Mapping[str, float]]
) -> AccountAudit:
    own = [charge for charge in state.reservations.values() if charge.account == name]
    delta, unit = own[-1].ceiling.delta if own else 1e-5, state.unit(name)
    events = state.spent(name, unit)
    return AccountAudit(
        account=name,
        unit=unit,
        delta=delta,
        ceiling=own[-1].ceiling.epsilon if own else None,
        limits=tuple(
            Limit(one.who, one.view, one.ceiling, recompute(one.events, one.delta).value)
            for one in promises(state, name)
        ),
        sums=recompute(events, delta),
        colluders=recompute(state.spent(name, unit, "colluders"), delta),
        claimed=accounting.epsilon(events, delta).value,
        runs=tuple(
            _run(
                state,
                run,
                [charge for charge in own if charge.run == run],
                reported.get(run, {}).get(state.site),
            )
            for run in dict.fromkeys(charge.run for charge in own)
        ),
        by_dataset=sum(bool(charge.dataset) for charge in state.reservations.values()),
    )


def _run(
    state: LedgerState, run: str, charges: list[Reservation], reported: float | None
) -> RunAudit:
    events = [event for charge in charges for event in charge.events]
    # A run's own figure is at the delta that the run asked for.
    delta = charges[-1].delta
    committed = sum(charge.sequence in state.committed for charge in charges)
    return RunAudit(
        run=run,
        committed=committed,
        reserved_only=len(charges) - committed,
        recomputed=recompute(events, delta),
        claimed=accounting.epsilon(events, delta).value,
        reported=reported,
        groups=tuple(_groups(events)),
        name=", ".join(dict.fromkeys(charge.name for charge in charges if charge.name)),
    )


def _groups(events: Iterable[Event]) -> list[EventGroup]:
    counts: Counter[tuple[str, float | None, float | None]] = Counter()
    for event in events:
        if isinstance(event, NonPrivate):
            counts["none", None, None] += 1
        elif isinstance(event, Stated):
            counts["stated", None, None] += 1
        elif isinstance(event, Gaussian):
            counts["Gaussian", 1.0, event.noise_multiplier] += event.count
        else:
            discrete = "discrete " if isinstance(event, PoissonDiscreteGaussian) else ""
            mechanism = f"Poisson-sampled {discrete}Gaussian"
            counts[mechanism, event.sampling_rate, event.noise_multiplier] += event.steps
    return [EventGroup(*key, steps) for key, steps in counts.items()]
