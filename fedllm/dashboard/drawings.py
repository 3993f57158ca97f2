"""The curves of a run: each measure, and epsilon, over its rounds or steps."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from fedllm.dashboard.curves import Chart, Series, chart
from fedllm.dashboard.following import Seen
from fedllm.dashboard.measures import is_number, measures_of, promised_of
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.metrics import Figures


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
            if is_number(one.get("step")) and is_number(one.get(name))
        ]
        found.append(chart(f"p{number}", name.replace("_", " "), [Series(name, points)], "step"))
    return [one for one in found if one is not None]
