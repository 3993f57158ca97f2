"""Recompute what sites have spent from their ledgers alone, and compare it with what was claimed.

Chain and signatures are checked first. Then every epsilon is computed from the recorded
events by three accountants of other authors (`fedllm.audit.ledgers.recompute`), for each account
over all runs and for each run, as those see it who see opened sums, and as everyone else
colluding against the site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedllm.audit.findings import Finding, worst_first
from fedllm.audit.ledgers.belonging import Audited, judge_folder, misplaced
from fedllm.audit.ledgers.claims import Claims, read_claims
from fedllm.audit.ledgers.figures import (
    AccountAudit,
    EpsilonAudit,
    EventGroup,
    LedgerAudit,
    Limit,
    RunAudit,
)
from fedllm.audit.ledgers.judge import firm, judge, trust_findings
from fedllm.audit.ledgers.recompute import recompute
from fedllm.errors import ConfigError
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
from fedllm.privacy.ledger.charges import Reservation
from fedllm.privacy.ledger.entries import Head, NoLedgerError, TamperedError
from fedllm.privacy.ledger.exports import refuse_other_files
from fedllm.privacy.ledger.rules import promises
from fedllm.privacy.ledger.state import LedgerState
from fedllm.runs import names
from fedllm.runs.record import runs_in


@dataclass(frozen=True, slots=True)
class Source:
    """A ledger to audit.

    Attributes
    ----------
    path : Path
        The ledger, or an export of one.
    folder : Path, optional
        The folder that holds it; none for a file that was given by itself.
    run : Path, optional
        The run's folder that it belongs to alone; none where it may belong to any.
    """

    path: Path
    folder: Path | None = None
    run: Path | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """All ledgers to audit, and what the folders that were given claim of them.

    Attributes
    ----------
    ledgers : tuple of Source
        In the order of the paths.
    claims : tuple of Claims
        One for each folder.
    """

    ledgers: tuple[Source, ...]
    claims: tuple[Claims, ...]

    def about(self, source: Source) -> list[Claims]:
        """Return the claims that a ledger is compared with: its run's, or those without own."""
        own = {one.run for one in self.ledgers if one.run}
        return [
            one
            for one in self.claims
            if (one.folder == source.run if source.run else one.folder not in own)
        ]

    def kept_in(self) -> Path | None:
        """Return the one finished run's folder that all this is about, if there is one."""
        if len(self.claims) == 1 and not any(one.run is None for one in self.ledgers):
            folders = [self.claims[0].folder]
        else:
            own = {one.run for one in self.ledgers if one.run}
            folders = [] if own else [one.folder for one in self.claims]
        finished = [folder for folder in folders if (folder / names.SUMMARY).exists()]
        return finished[0] if len(finished) == 1 else None


def find_ledgers(paths: Sequence[Path]) -> Sources:
    """Return the ledgers of files, folders of ledgers, and run folders.

    A run whose folder holds no ledgers (`fedllm simulate --ledgers`, a deployment) is compared
    with those that the other paths give.

    Raises
    ------
    ConfigError
        If a path does not exist or holds no ledger.
    """
    sources: list[Source] = []
    claims: list[Claims] = []
    empty: list[ConfigError] = []
    for path in dict.fromkeys(paths):
        if not path.exists():
            raise ConfigError(f"there is no {path}", "give a ledger, an export, or a run's folder")
        if path.is_file():
            refuse_other_files(path)
            sources.append(Source(path))
            continue
        inner = path / names.LEDGERS
        folder = inner if inner.is_dir() else path
        found = sorted(folder.glob("*.sqlite")) + sorted(folder.glob("*.jsonl"))
        found = [file for file in found if file.name not in names.NO_LEDGERS]
        is_run = any((path / name).exists() for name in (names.SUMMARY, names.RUN_TOML))
        if not found:
            empty.append(_no_ledgers(path, folder))
            if not is_run:
                raise empty[-1]
        claimed = read_claims(path)
        # Heads beside ledgers are theirs.
        own = path if is_run or claimed.heads else None
        sources += [Source(file, folder, own) for file in found]
        claims.append(claimed)
    if empty and not any(source.run is None for source in sources):
        raise empty[0]
    return Sources(tuple(sources), tuple(claims))


def _no_ledgers(path: Path, folder: Path) -> ConfigError:
    runs = runs_in(path)
    if runs:
        remedy = f"it is a folder of runs; give one or several of them: {runs}"
    elif (path / names.RUN_TOML).exists():
        remedy = (
            "give the ledgers of its sites besides, or their folder: "
            f"fedllm audit epsilon {path} LEDGERS"
        )
    else:
        remedy = "give a run's folder, or one with *.sqlite ledgers"
    return ConfigError(f"{folder} holds no ledgers", remedy)


def audit_ledgers(
    sources: Sources,
    public_keys: Mapping[str, bytes] | None = None,
    anchors: Mapping[str, Sequence[Head]] | None = None,
) -> EpsilonAudit:
    """Check and recompute every ledger; what does not hold is a finding, not an exception.

    Parameters
    ----------
    sources : Sources
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
    ledgers: list[Audited] = []
    findings = [found for one in sources.claims for found in one.problems]
    for source in sources.ledgers:
        about = sources.about(source)
        try:
            state = read_state(source.path)
            # Once more against what others know of this site.
            heads = [*(anchors or {}).get(state.site, ())]
            heads += [head for one in about for head in one.heads.get(state.site, ())]
            if state.site in keys or heads:
                state = read_state(source.path, keys.get(state.site), heads)
        except (TamperedError, NoLedgerError) as error:
            # In a folder of ledgers, a file that is none is one that was exchanged.
            findings.append(Finding("critical", str(source.path), error.message))
            unknown = LedgerAudit(str(source.path), "", "", ())
            ledgers.append(Audited(source.path, source.folder, None, unknown))
            continue
        reported = {one.run: one.sites for one in about if one.run}
        audited = _ledger(str(source.path), state, reported)
        ledgers.append(Audited(source.path, source.folder, state, audited))
        findings += trust_findings(audited, state.site in keys, bool(heads))
        findings += [found for one in audited.accounts for found in judge(audited.site, one)]
        findings += _left_out(audited, reported)
    findings += misplaced(ledgers)
    for claims in sources.claims:
        mine = zip(sources.ledgers, ledgers, strict=True)
        findings += judge_folder(claims, [one for at, one in mine if claims in sources.about(at)])
    found = tuple(worst_first(list(dict.fromkeys(findings))))
    return EpsilonAudit(tuple(one.found for one in ledgers), found)


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
            Limit(one.who, one.view, one.ceiling, _firm(one.events, one.delta))
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


def _firm(events: Sequence[Event], delta: float) -> float:
    found = recompute(events, delta)
    return found.value if found.tight else firm(found, accounting.epsilon(events, delta).value)


def _run(
    state: LedgerState, run: str, charges: list[Reservation], reported: float | None
) -> RunAudit:
    events = [event for charge in charges for event in charge.events]
    alone = [event for charge in charges for event in charge.colluder_events]
    # A run's own figure is at the delta that the run asked for.
    delta = charges[-1].delta
    committed = sum(charge.sequence in state.committed for charge in charges)
    return RunAudit(
        run=run,
        committed=committed,
        reserved_only=len(charges) - committed,
        recomputed=recompute(events, delta),
        colluders=recompute(alone, delta),
        claimed=accounting.epsilon(events, delta).value,
        colluders_claimed=accounting.epsilon(alone, delta).value,
        reported=reported,
        groups=tuple(_groups(events)),
        delta=delta,
        unit=charges[-1].unit,
        last_round=max(charge.round for charge in charges),
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
