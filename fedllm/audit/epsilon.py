"""Recompute what sites have spent from their ledgers alone, and compare it with what was claimed.

Chain and signatures are checked first. Then every epsilon is computed from the recorded
events by three accountants of other authors (`fedllm.audit.recompute`), for each data set
over all runs and for each run, as those see it who see opened sums, and as everyone else
colluding against the site.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedllm.audit.findings import Finding, worst_first
from fedllm.audit.recompute import Recomputed, recompute
from fedllm.errors import ConfigError
from fedllm.privacy import accounting
from fedllm.privacy.events import Event, Gaussian, NonPrivate, PoissonDiscreteGaussian
from fedllm.privacy.ledger_audit import read_state
from fedllm.privacy.ledger_entries import Head, TamperedError
from fedllm.privacy.ledger_state import LedgerState, Reservation

# Both sides round upwards, by grids and by error bounds of about one hundredth.
TOLERANCE = 0.02

ASSUMPTIONS = (
    "Neighbouring data sets: one unit's content (a record, or all records of a person, as the "
    "data set says) is replaced by an empty one. The number of units and the sampling rate "
    "are taken as public.",
    "Sampling: each unit was in a step's batch independently, with the recorded probability "
    "(Poisson sampling). `fedllm audit selftest` tests that the installed code does this.",
    "Noise: Gaussian, with the recorded standard deviation in units of the clipping norm, "
    "from a generator that nobody can predict. The self-test tests this too.",
    "'Others see sums': coordinator, key authority and the other sites see opened sums and the "
    "model. With distributed noise this relies on at most `privacy.colluders` sites revealing "
    "their share of the noise.",
    "'All others collude': everyone else puts together what they have against this site.",
    "Rounds that were charged count in full, whether they finished or not. Data sets that "
    "share a record or person count each other's rounds.",
    "A ledger says what the site recorded. That nothing was left out follows from the order "
    "'charge, then train' in the code, and from heads (anchors) that other parties kept.",
)


@dataclass(frozen=True, slots=True)
class EventGroup:
    """Equal steps, counted.

    Attributes
    ----------
    mechanism : str
        "Poisson-sampled Gaussian" (or "discrete Gaussian"), "Gaussian" or "none".
    sampling_rate, noise_multiplier : float, optional
        None for steps without privacy.
    steps : int
        How many.
    """

    mechanism: str
    sampling_rate: float | None
    noise_multiplier: float | None
    steps: int


@dataclass(frozen=True, slots=True)
class RunAudit:
    """One run's cost to one data set.

    Attributes
    ----------
    run : str
        Its identifier.
    committed, reserved_only : int
        Rounds that finished, and rounds that were charged and did not.
    recomputed : Recomputed
        From the events alone.
    claimed : float
        What fedllm's own accountant says of the same events.
    reported : float, optional
        What the run's ``summary.json`` says of this site; none where it says nothing.
    groups : tuple of EventGroup
        What happened.
    """

    run: str
    committed: int
    reserved_only: int
    recomputed: Recomputed
    claimed: float
    reported: float | None
    groups: tuple[EventGroup, ...]


@dataclass(frozen=True, slots=True)
class DatasetAudit:
    """One data set over all runs.

    Attributes
    ----------
    id, unit, records, persons, overlaps
        As in the ledger.
    delta : float
        At which everything is computed: the ceiling's.
    ceiling : float, optional
        Largest epsilon that the site allowed at its last charge; infinite without a limit.
    sums, colluders : Recomputed
        Over all runs, as two kinds of observers see it.
    claimed : float
        fedllm's own accountant on what ``sums`` saw.
    runs : tuple of RunAudit
        In the order of their first charge.
    """

    id: str
    unit: str
    records: int
    persons: int
    overlaps: tuple[str, ...]
    delta: float
    ceiling: float | None
    sums: Recomputed
    colluders: Recomputed
    claimed: float
    runs: tuple[RunAudit, ...]


@dataclass(frozen=True, slots=True)
class LedgerAudit:
    """One ledger; without a site when it could not be believed."""

    path: str
    site: str
    head: str
    datasets: tuple[DatasetAudit, ...]


@dataclass(frozen=True, slots=True)
class EpsilonAudit:
    """All ledgers, and what is wrong or worth knowing."""

    ledgers: tuple[LedgerAudit, ...]
    findings: tuple[Finding, ...]

    @property
    def critical(self) -> bool:
        """Whether something does not hold."""
        return any(finding.severity == "critical" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Source:
    """A ledger to audit.

    Attributes
    ----------
    path : Path
        The ledger, or an export of one.
    reported : mapping of str to mapping of str to float
        Epsilon by run and site, as a run's summary says.
    """

    path: Path
    reported: Mapping[str, Mapping[str, float]]


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
            sources.append(Source(path, {}))
            continue
        folder = path / "ledgers" if (path / "ledgers").is_dir() else path
        found = sorted(folder.glob("*.sqlite")) + sorted(folder.glob("*.jsonl"))
        found = [file for file in found if folder != path or file.name != "metrics.jsonl"]
        if not found:
            raise ConfigError(f"{folder} holds no ledgers", "give a folder with *.sqlite ledgers")
        sources += [Source(file, _reported(path)) for file in found]
    return sources


def _reported(folder: Path) -> dict[str, dict[str, float]]:
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
        sites = summary["privacy"]["sites"]
        return {str(summary["run_id"]): {str(k): float(v) for k, v in sites.items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def audit_ledgers(
    sources: Sequence[Source],
    public_keys: Mapping[str, bytes] | None = None,
    anchors: Mapping[str, Head] | None = None,
) -> EpsilonAudit:
    """Check and recompute every ledger; what does not hold is a finding, not an exception.

    Parameters
    ----------
    sources : sequence of Source
        From `find_ledgers`.
    public_keys : mapping of str to bytes, optional
        Sites' raw Ed25519 keys from a trustworthy place, by site.
    anchors : mapping of str to Head, optional
        Heads of ledgers that other parties kept, by site.

    Raises
    ------
    FedllmError
        If a file cannot be read.
    """
    keys, heads = public_keys or {}, anchors or {}
    ledgers, findings = [], []
    for source in sources:
        name = str(source.path)
        try:
            state = read_state(source.path)
            # Once more against what others know of this site.
            if state.site in keys or state.site in heads:
                state = read_state(source.path, keys.get(state.site), heads.get(state.site))
        except TamperedError as error:
            findings.append(Finding("critical", name, error.message))
            ledgers.append(LedgerAudit(name, "", "", ()))
            continue
        audited = _ledger(name, state, source.reported)
        ledgers.append(audited)
        findings += _trust(audited, keys, heads)
        findings += [found for data in audited.datasets for found in _judge(audited.site, data)]
    return EpsilonAudit(tuple(ledgers), tuple(worst_first(findings)))


def _ledger(
    path: str, state: LedgerState, reported: Mapping[str, Mapping[str, float]]
) -> LedgerAudit:
    datasets = tuple(_dataset(state, id_, reported) for id_ in state.datasets)
    return LedgerAudit(path, state.site, str(state.head), datasets)


def _dataset(
    state: LedgerState, id_: str, reported: Mapping[str, Mapping[str, float]]
) -> DatasetAudit:
    dataset = state.datasets[id_]
    own = [charge for charge in state.reservations.values() if charge.dataset == id_]
    ceiling = own[-1].ceiling if own else None
    delta = ceiling.delta if ceiling else 1e-5
    events = state.spent(id_)
    related = state.related(id_)
    return DatasetAudit(
        id=id_,
        unit=dataset.unit,
        records=int(dataset.description["records"]),
        persons=int(dataset.description["persons"]),
        overlaps=tuple(sorted(related - {id_})),
        delta=delta,
        ceiling=ceiling.epsilon if ceiling else None,
        sums=recompute(events, delta),
        colluders=recompute(state.spent(id_, "colluders"), delta),
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
    )


def _groups(events: Iterable[Event]) -> list[EventGroup]:
    counts: Counter[tuple[str, float | None, float | None]] = Counter()
    for event in events:
        if isinstance(event, NonPrivate):
            counts["none", None, None] += 1
        elif isinstance(event, Gaussian):
            counts["Gaussian", 1.0, event.noise_multiplier] += event.count
        else:
            discrete = "discrete " if isinstance(event, PoissonDiscreteGaussian) else ""
            mechanism = f"Poisson-sampled {discrete}Gaussian"
            counts[mechanism, event.sampling_rate, event.noise_multiplier] += event.steps
    return [EventGroup(*key, steps) for key, steps in counts.items()]


def _trust(
    ledger: LedgerAudit, keys: Mapping[str, bytes], heads: Mapping[str, Head]
) -> Iterable[Finding]:
    if ledger.site not in keys:
        yield Finding(
            "note",
            ledger.site,
            "signatures were checked against the key that the ledger itself names; "
            f"give --public-key {ledger.site}=HEX to know that it is the site's",
        )
    if ledger.site not in heads:
        yield Finding(
            "note",
            ledger.site,
            "no anchor was given: entries cut off at the end would not be noticed; ask another "
            "party for a head that it kept",
        )


def _judge(site: str, data: DatasetAudit) -> Iterable[Finding]:
    subject = f"{site}, data set {data.id[:12]}"
    spent = data.sums.value
    yield from _compare(subject, "fedllm's accountant", data.claimed, data.sums)
    if data.ceiling is not None and _above(spent, data.ceiling):
        yield Finding(
            "critical",
            subject,
            f"epsilon {_shown(spent)} was spent, above the site's ceiling {data.ceiling:g}",
        )
    if math.isinf(spent):
        yield Finding(
            "warning",
            subject,
            "a run without differential privacy used these records: nothing bounds what was "
            "revealed, and every later run on them is without a bound as well",
        )
    elif math.isfinite(spent) and not math.isfinite(data.colluders.value):
        yield Finding("warning", subject, "nothing protects it if all others collude")
    units = data.persons if data.unit == "person" else data.records
    if data.delta * units > 1:
        yield Finding(
            "warning",
            subject,
            f"delta {data.delta:g} is above 1 / {units} {data.unit}s: releasing one at random "
            "would satisfy it",
        )
    if data.unit == "record" and data.persons:
        yield Finding(
            "note", subject, "single records are protected; persons with several of them are less"
        )
    if data.overlaps:
        yield Finding(
            "note", subject, f"shares records or persons with {len(data.overlaps)} other data sets"
        )
    for run in data.runs:
        yield from _judge_run(f"{site}, run {run.run}", run)


def _judge_run(subject: str, run: RunAudit) -> Iterable[Finding]:
    if run.reported is not None:
        yield from _compare(subject, "the run's summary", run.reported, run.recomputed)
    yield from _compare(subject, "fedllm's accountant", run.claimed, run.recomputed)
    if run.recomputed.spread > 0.05:
        yield Finding(
            "warning",
            subject,
            f"the accountants disagree: {_shown(run.recomputed.pld)} and "
            f"{_shown(run.recomputed.prv)}",
        )
    if run.reserved_only:
        yield Finding(
            "note", subject, f"{run.reserved_only} rounds were charged and did not finish"
        )


def _compare(subject: str, who: str, claimed: float, found: Recomputed) -> Iterable[Finding]:
    value = found.value
    if _above(value, claimed):
        yield Finding(
            "critical",
            subject,
            f"{who} claims epsilon {_shown(claimed)}; recomputed from the events it is "
            f"{_shown(value)}",
        )
    elif math.isfinite(claimed) and claimed > 1.1 * value + TOLERANCE:
        yield Finding(
            "note",
            subject,
            f"{who} claims epsilon {_shown(claimed)}, more than the {_shown(value)} that was spent",
        )


def _above(value: float, limit: float) -> bool:
    return value > limit * (1 + TOLERANCE) + 1e-6


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if math.isfinite(value) else "unlimited"


def require_sound(found: EpsilonAudit) -> None:
    """Raise when something critical was found, after it was shown.

    Raises
    ------
    TamperedError
        Exit code 4.
    """
    wrong = [finding for finding in found.findings if finding.severity == "critical"]
    if wrong:
        raise TamperedError(
            f"{len(wrong)} findings are critical; first: {wrong[0].subject}: {wrong[0].text}",
            "believe no epsilon of this ledger until its site has explained it",
        )
