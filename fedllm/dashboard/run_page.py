"""What the page of one run shows, in words, tables and curves; made of what its folder says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from fedllm.config.parsing import without_passwords
from fedllm.dashboard.curves import Chart, Series, chart, number_text
from fedllm.dashboard.following import Seen
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs import names
from fedllm.runs.metrics import Figures, RoundReport
from fedllm.runs.shelf import settings_of
from fedllm.runs.terminal import describe_phase
from fedllm.visible import visible

# Counts, and no measures of a model; and the ends of intervals, which stand in the table.
_COUNTS = ("records", "units", "pairs", "tokens")
_ENDS = ("_noise", "_low", "_high")
_FIRST = ("loss", "accuracy", "f1", "perplexity", "reward")
_PHASES = {
    "train": "training, all sites together",
    "encrypt": "encrypting, all sites together",
    "aggregate": "adding up",
    "decrypt": "opening the sum",
    "evaluate": "evaluating on the public file",
}
_RECENT = 5
_MOST_ROWS = 500
_STATES = {
    "queued": "queued: a coordinator has it, and no process works on it now",
    "running": "running",
    "stopped": "stopped: no process works on it",
    "finished": "finished",
    "failed": "failed",
    "cancelled": "cancelled",
}
_FILES = {
    names.REPORT: "report for a data-protection officer",
    names.REPORT_TWIN: "the report's figures",
    names.SUMMARY: "what the run came to",
    names.METRICS: "figures of each round or step",
    names.HEADS: "signed heads of the sites' ledgers",
    names.ROSTER: "public keys of the parties",
    names.RELEASE: "what the coordinator signed of the released model",
    names.WITHDRAWN: "that the release was withdrawn",
}
Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RunWords:
    """What stands at the top of a run's page.

    Attributes
    ----------
    name, what : str
        The run's name, and what it is.
    state, left : str
        How it stands, and how much longer it takes, in words.
    done, total, percent : int
        Rounds or steps.
    unit : {"rounds", "steps"}
        What is counted.
    under : str
        What is under way.
    error, remedy : str
        Of a run that failed.
    """

    name: str
    what: str
    state: str
    left: str
    done: int
    total: int
    percent: int
    unit: str
    under: str
    error: str
    remedy: str


def words_of(seen: Seen) -> RunWords:
    """Say how a run stands."""
    done, total, unit = _progress(seen)
    return RunWords(
        name_of(seen),
        what_of(seen),
        _STATES[seen.state],
        _left(seen),
        done,
        total,
        round(100 * min(1.0, done / total)) if total else 0,
        unit,
        _under(seen),
        visible(seen.error.get("message", "")),
        visible(seen.error.get("remedy", "")),
    )


def name_of(seen: Seen) -> str:
    """Return a run's own name, or its folder's."""
    if seen.config is not None and seen.kind == "run":
        return visible(seen.config.name)
    if seen.summary is not None and seen.summary.run:
        return visible(seen.summary.run)
    return visible(seen.folder.name)


def what_of(seen: Seen) -> str:
    """Say in a few words what is done in a folder."""
    if seen.kind == "pretraining":
        return "pretraining on public text"
    recorded = seen.summary.task if seen.summary is not None else ""
    task = (seen.config.task if seen.config is not None else recorded).replace("_", " ")
    kind = "alignment on public prompts" if seen.kind == "alignment" else "federated run"
    return f"{kind}, {task}" if task else kind


def _progress(seen: Seen) -> tuple[int, int, str]:
    if seen.kind != "pretraining":
        return seen.done, seen.total, "rounds" if seen.kind == "run" else "steps"
    step = seen.steps[-1].get("step") if seen.steps else 0
    return (step if isinstance(step, int) else 0), 0, "steps"


def _left(seen: Seen) -> str:
    """Say how much longer a run takes, by the pace of its last rounds."""
    if seen.state != "running" or not seen.total:
        return ""
    trained = [r.seconds.get("total") for r in seen.reports if r.round]
    recent = [value for value in trained[-_RECENT:] if value]
    left = seen.total - seen.done
    if not recent or left <= 0:
        return "" if recent else "how long it takes is known after the first round"
    return f"about {duration(left * sum(recent) / len(recent))} left after round {seen.done}"


def duration(seconds: float) -> str:
    """Write a time as people say it: two units at most."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def _under(seen: Seen) -> str:
    under = seen.under
    if seen.state != "running" or not under.round:
        return ""
    if not under.phase:
        return f"round {under.round} begins" if under.round <= seen.total else "finishing"
    of = f" of {under.asked}" if under.asked else ""
    return f"round {under.round}, {describe_phase(under.phase)}: {under.answered}{of} have answered"


def measures_of(reports: Sequence[RoundReport]) -> list[str]:
    """Return the names of all measures of a run, those first that people look for first."""
    found = dict.fromkeys(
        name
        for report in reports
        for figures in (report.metrics, report.site_metrics)
        for name in figures or {}
        if name not in _COUNTS and not name.endswith(_ENDS)
    )
    return sorted(found, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def charts_of(seen: Seen) -> list[Chart]:
    """Draw every measure over the rounds, and epsilon."""
    if seen.kind == "pretraining":
        return _pretraining_charts(seen)
    across = "round" if seen.kind == "run" else "step"
    found = [
        chart(f"m{number}", title, _measured(seen, name), across, until=seen.total)
        for number, name in enumerate(measures_of(seen.reports))
        for title in [name.replace("_", " ")]
    ]
    found.append(_epsilon_chart(seen))
    return [one for one in found if one is not None]


def _measured(seen: Seen, name: str) -> list[Series]:
    public, own = (
        ((r.round, r.metrics) for r in seen.reports),
        ((r.round, r.site_metrics) for r in seen.reports),
    )
    where = "public test file" if seen.kind == "run" else "held-out prompts"
    return [
        Series(where, _points(public, name)),
        Series("held out at the sites", _points(own, name)),
    ]


def _points(told: Iterator[tuple[int, Figures | None]], name: str) -> list[tuple[float, float]]:
    return [(at, value) for at, of in told if of and (value := of.get(name)) is not None]


def _epsilon_chart(seen: Seen) -> Chart | None:
    spent = [(r.round, r.largest_epsilon) for r in seen.reports if r.largest_epsilon is not None]
    least = [(r.round, min(r.spent.values())) for r in seen.reports if r.epsilon]
    series = [Series("spent, the most at a site", spent)]
    if least != spent:
        series.append(Series("spent, the least at a site", least))
    promised = promised_of(seen)
    limit = ("promised", promised) if promised is not None else None
    # What has no bound has no curve: it would end where it is still bounded.
    series = [
        Series(one.name, [(0, 0.0), *one.points])
        for one in series
        if one.points and all(isfinite(value) for _, value in one.points)
    ]
    return chart("epsilon", "epsilon", series, limit=limit, text=epsilon_text, until=seen.total)


def _pretraining_charts(seen: Seen) -> list[Chart]:
    measures = dict.fromkeys(
        name
        for step in seen.steps
        for name in step
        if name in ("loss", "bits_per_byte") or name.startswith("held_out")
    )
    found = []
    for number, name in enumerate(measures):
        points = [
            (float(one["step"]), float(one[name]))
            for one in seen.steps
            if _is_number(one.get("step")) and _is_number(one.get(name))
        ]
        found.append(chart(f"p{number}", name.replace("_", " "), [Series(name, points)], "step"))
    return [one for one in found if one is not None]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def promised_of(seen: Seen) -> float | None:
    """Return the epsilon that a run promises; None without one."""
    if seen.kind == "run" and seen.config is not None:
        return seen.config.privacy.epsilon
    told = seen.summary.privacy.get("promised") if seen.summary is not None else None
    return float(told) if isinstance(told, int | float) else None


def spent_of(seen: Seen) -> float | None:
    """Return the largest epsilon that the folder tells of a site; None where only sites know."""
    spent: dict[str, float] = {}
    for report in seen.reports:
        spent.update(report.spent)
    return max(spent.values(), default=None)


def spent_by_site(seen: Seen) -> dict[str, str]:
    """Write the epsilon of each site of which the folder tells it."""
    spent: dict[str, float] = {}
    for report in seen.reports:
        spent.update(report.spent)
    return {site: epsilon_text(value) for site, value in spent.items()}


def privacy_of(seen: Seen) -> Rows:
    """Say what a run promises and has spent."""
    config = seen.config
    if seen.kind != "run":
        return ()
    promised, spent = promised_of(seen), spent_of(seen)
    if config is not None and not config.private:
        return (("promise", "NONE: this run is not private"),)
    rows = [("epsilon promised", epsilon_text(promised))]
    if spent is not None and config is not None:
        share = f" ({100 * spent / promised:.0f}% of it)" if promised and isfinite(spent) else ""
        rows.append(("epsilon spent so far, the most at a site", epsilon_text(spent) + share))
    else:
        rows.append(
            ("epsilon spent", "only the sites know: each keeps its own ledger, and none sends it")
        )
    if config is not None:
        rows.append(("delta", f"{config.privacy.delta:g}"))
        rows.append(("for each", config.unit))
        noise = str(settings_of(config).get("privacy.noise", ""))
        rows.append(("noise", visible(noise).replace("_", " ")))
    told = seen.summary.privacy if seen.summary is not None else {}
    if _is_number(told.get("colluders_epsilon")):
        rows.append(("epsilon, if all others collude", epsilon_text(told["colluders_epsilon"])))
    return tuple(rows)


@dataclass(frozen=True)
class Part:
    """A part of what a run took.

    Attributes
    ----------
    name, value : str
        In words.
    share : float
        Of the largest part, from 0 to 1.
    """

    name: str
    value: str
    share: float


def seconds_of(seen: Seen) -> tuple[Part, ...]:
    """Return the seconds by phase, over all rounds so far."""
    sums = {
        name: sum(report.seconds.get(name) or 0.0 for report in seen.reports) for name in _PHASES
    }
    most = max(sums.values(), default=0.0)
    return tuple(
        Part(_PHASES[name], duration(value), value / most) for name, value in sums.items() if value
    )


def took(seen: Seen) -> str:
    """Say how long all rounds took by the clock; empty where they do not say."""
    if seen.kind == "alignment":
        # A step's line has the seconds from the beginning.
        last = seen.reports[-1].seconds.get("total") if seen.reports else None
        return duration(last) if last else ""
    total = sum(report.seconds.get("total") or 0.0 for report in seen.reports)
    return duration(total) if total else ""


def bytes_of(seen: Seen) -> tuple[Part, ...]:
    """Return the bytes that travelled, in all and for each round."""
    sums = {
        "from the sites": sum(report.bytes_up for report in seen.reports),
        "to the sites": sum(report.bytes_down for report in seen.reports),
    }
    most, rounds = max(sums.values(), default=0), max(1, seen.done)
    return tuple(
        Part(name, f"{size(value)} in all, {size(value / rounds)} a round", value / most)
        for name, value in sums.items()
        if value
    )


def size(count: float) -> str:
    """Write a number of bytes with a decimal unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return (
                f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
            )
        count /= 1000
    return f"{count:.1f} TB"


@dataclass(frozen=True)
class RoundsTable:
    """All rounds as a table, the latest first.

    Attributes
    ----------
    headings, rows : tuple
        Cells in words.
    left_out : int
        Earlier rounds that are not shown.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int


def rounds_table(seen: Seen) -> RoundsTable:
    """Write the figures of each round."""
    measures = [name for name in measures_of(seen.reports) if name in _FIRST]
    shown = seen.reports[-_MOST_ROWS:]
    rows = []
    for report in reversed(shown):
        figures = report.metrics or report.site_metrics or {}
        epsilon = report.largest_epsilon
        rows.append(
            (
                str(report.round),
                str(report.sites) if report.round else "",
                str(len(report.dropped)) if report.dropped else "",
                *(_figure(figures, name) for name in measures),
                epsilon_text(epsilon) if epsilon is not None else "",
                size(report.bytes_up) if report.bytes_up else "",
                duration(s) if (s := report.seconds.get("total")) else "",
                _remark(report),
            )
        )
    headings = ("round", "sites", "left out", *measures, "epsilon", "up", "took", "remark")
    left_out = len(seen.reports) - len(shown)
    if seen.kind == "alignment":
        # No site takes part in it.
        return RoundsTable(("step", *measures), tuple(_of_step(row) for row in rows), left_out)
    return RoundsTable(headings, tuple(rows), left_out)


def _of_step(row: tuple[str, ...]) -> tuple[str, ...]:
    return (row[0], *row[3:-4])


def _figure(figures: Figures, name: str) -> str:
    if name not in figures:
        return ""
    value = figures[name]
    return "not a number" if value is None else number_text(value)


def _remark(report: RoundReport) -> str:
    if report.kept_round is not None:
        return f"rejected, back to round {report.kept_round}"
    if report.rejected:
        return f"rejected ({visible(', '.join(report.rejected))})"
    return "before training" if not report.round else ""


def fingerprints_of(seen: Seen) -> Rows:
    """Return the digests by which others know a run and what it gave."""
    rows: list[tuple[str, str]] = []
    summary = seen.summary
    if summary is not None:
        rows += [
            ("run", summary.run_id),
            ("base model", str(summary.model.get("fingerprint", ""))),
            ("adapter, SHA-256", summary.adapter_sha256),
        ]
        rows += [(f"version of {name}", text) for name, text in summary.versions.items()]
    keys = seen.heads.keys
    if "authority" in keys:
        rows.append(("key of the key authority", keys["authority"]))
    return tuple((name, visible(value)) for name, value in rows if value)


def settings_rows(seen: Seen) -> Rows:
    """Return the settings of a run, without user and password of any URL."""
    if seen.config is None or seen.kind != "run":
        return ()
    found: Mapping[str, Any] = without_passwords(settings_of(seen.config))
    return tuple(
        (key, visible(_plain(value))) for key, value in found.items() if value not in (None, [], {})
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else str(value)


def files_of(seen: Seen) -> tuple[tuple[str, str, str], ...]:
    """Return what may be had: name, what it is, and its size."""
    return tuple((name, _FILES[name], size(count)) for name, count in seen.files.items())


def best_of(seen: Seen) -> tuple[str, float] | None:
    """Return the measure that says most in a word, as of the last evaluation."""
    measured = [report.metrics for report in seen.reports if report.metrics]
    figures = (seen.summary.metrics if seen.summary is not None else None) or (
        measured[-1] if measured else {}
    )
    for name in ("accuracy", "f1", "reward", "loss", *figures):
        value = figures.get(name)
        if value is not None and name not in _COUNTS and value != inf:
            return name, value
    return None
